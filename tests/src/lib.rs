//! End-to-end tests of pyro.
