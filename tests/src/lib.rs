//! System tests of Trunkline. What is here:
//!
//! - `tests/tidy.rs`: the repository is held to its own word (the walk, module ranks, file lengths, licences, commands of the README);
//! - `src/bin/e2e_handler.rs`: the handler that the end-to-end tests start and kill;
//! - `e2e/`: the end-to-end tests (Python, `make e2e`): real processes, faults, clients nobody here wrote.
