//! Nothing lives here: the tests are in `it/`, the programs that they run in `programs/` and `workloads/`.
