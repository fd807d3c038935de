//! End-to-end tests: the real binary, real PostgreSQL servers, real drivers. One module per claim.

/// What the documents say is what the code does.
#[cfg(test)]
mod documentation;
