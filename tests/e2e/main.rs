//! End-to-end tests: the real binary, real PostgreSQL servers, real drivers. One module per claim.
