//! What operators change: members and leaders.
