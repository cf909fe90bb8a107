//! What survives of workspaces: the rows of the state database. Their machines, trees and tools stand on it.

pub mod store;
