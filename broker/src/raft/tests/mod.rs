mod install;
mod suite;
