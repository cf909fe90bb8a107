//! What can be known about a component without running or compiling it.
//!
//! [`ComponentScan`] reads the bytes: what it imports and exports, and the tool list its build tool put into the
//! `pyro:manifest` custom section. [`ToolSpec`] is one tool as the component states it, [`AmendmentSpec`] what it adds to another component's; `lint` decides whether pyro can
//! offer it to the clients there are.

mod lint;
mod scan;
mod spec;

pub(crate) use lint::{SCHEMA_HINT, lint_amended, lint_amendments, lint_schemas, lint_tools};
pub(crate) use scan::{ComponentScan, MANIFEST_HINT, MAX_COMPONENT_BYTES, append_manifest};
pub(crate) use spec::{AmendmentSpec, Listing, ToolSpec, first_difference, manifest_json};
