//! Writes a pyro plugin in Rust.
//!
//! A tool is a type that implements [`Tool`]: its argument struct gives the JSON Schema, the documentation, the
//! validation and the command line form, its output struct the schema of the result. [`export!`] makes a component of
//! one or more tools:
//!
//! ```no_run
//! use pyro_plugin_sdk::{Call, JsonSchema, Tool, ToolError};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Arguments {
//!     /// The text to measure.
//!     text: String,
//! }
//!
//! #[derive(Serialize, JsonSchema)]
//! struct Output {
//!     /// Words in it.
//!     words: usize,
//! }
//!
//! struct CountWords;
//!
//! impl Tool for CountWords {
//!     const NAME: &'static str = "count_words";
//!     const DESCRIPTION: &'static str = "Counts the words of a text.";
//!     type Arguments = Arguments;
//!     type Output = Output;
//!
//!     fn call(arguments: Arguments, _call: &Call) -> Result<Output, ToolError> {
//!         Ok(Output { words: arguments.text.split_whitespace().count() })
//!     }
//! }
//!
//! pyro_plugin_sdk::export!(CountWords);
//! # fn main() {}
//! ```
//!
//! Build it with `cargo build --release --target wasm32-wasip2`; a build step may append its tool list with
//! [`append_manifest`]. The functions of
//! [`vm`] and [`host`] that it uses become its imports, and those are the grants it asks a profile for.
//!
//! Deliberately absent: anything a component written without this crate could not do.

// The macros name this crate from wherever they are expanded.
extern crate self as pyro_plugin_sdk;

#[doc(hidden)]
pub mod bindings;
mod cli;
mod interceptor;
mod manifest;
pub mod output;
mod schema;
mod tool;

pub use cli::{Blocks, Cli, Flag, Human, Table};
pub use interceptor::{Amendment, Decision, Interceptor, Outcome};
pub use manifest::append_manifest;
pub use schemars::JsonSchema;
pub use tool::{Call, Hints, Tool, ToolError};

#[doc(hidden)]
pub use interceptor::{after, before, intercepting_answer};
#[doc(hidden)]
pub use manifest::Manifest;
#[doc(hidden)]
pub use pyro_plugin_interceptor;
#[doc(hidden)]
pub use tool::{Definition, answer, definition};

/// What every component may use.
pub mod host {
    pub use crate::bindings::pyro::host::{blobs, config, log};
}

/// MicroVMs; each module needs the grant of its name.
pub mod vm {
    pub use crate::bindings::pyro::vm::{
        environments, exec, files, host_files, machine_lifecycle, machines, ports, services, terminals, types,
        workspaces,
    };
}

/// The secrets of a workspace, by name; needs the grant `secrets`. A value is given once and never comes back.
pub mod secrets {
    pub use crate::bindings::pyro::secrets::{bindings, store};
}

/// The text of the manifest section, when the build passes it in `PYRO_MANIFEST_` with the package's name: a component
/// built so need not hold the code that makes it.
#[doc(hidden)]
#[macro_export]
macro_rules! stated_manifest {
    () => {
        ::std::option_env!(::std::concat!("PYRO_MANIFEST_", ::std::env!("CARGO_PKG_NAME")))
    };
}

/// Makes a component of tools. Call it once, at the root of a crate.
///
/// `export!(A, B; interceptor = I)` makes one that is an [`Interceptor`] besides.
#[macro_export]
macro_rules! export {
    ($($tool:ty),+ $(,)?; interceptor = $interceptor:ty $(,)?) => {
        /// Returns the text of the component's `pyro:manifest` section.
        pub fn pyro_manifest() -> ::std::string::String {
            let amendments = <$interceptor as $crate::Interceptor>::amendments();
            $crate::Manifest::new(::std::vec![$($crate::definition::<$tool>()),+], ::std::option::Option::Some(amendments))
                .text()
        }

        // The exports have names that only a component linker understands.
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::pyro_plugin_interceptor::exports::pyro::plugin::{interceptor, tools};

            struct Plugin;

            fn manifest() -> $crate::Manifest {
                $crate::Manifest::stated_or($crate::stated_manifest!(), || {
                    let amendments = <$interceptor as $crate::Interceptor>::amendments();
                    $crate::Manifest::new(
                        ::std::vec![$($crate::definition::<$tool>()),+],
                        ::std::option::Option::Some(amendments),
                    )
                })
            }

            impl tools::Guest for Plugin {
                fn list_tools() -> ::std::result::Result<::std::vec::Vec<tools::ToolDef>, tools::ToolError> {
                    ::std::result::Result::Ok(manifest().tools.into_iter().map(tools::ToolDef::from).collect())
                }

                fn call(
                    name: ::std::string::String,
                    arguments: ::std::string::String,
                    context: tools::CallContext,
                ) -> ::std::result::Result<tools::ToolResult, tools::ToolError> {
                    $(
                        if name == <$tool as $crate::Tool>::NAME {
                            return $crate::intercepting_answer::<$tool>(&arguments, context);
                        }
                    )+
                    ::std::result::Result::Err(
                        $crate::ToolError::new("unknown_tool", ::std::format!("this plugin has no tool `{name}`")).into(),
                    )
                }
            }

            impl interceptor::Guest for Plugin {
                fn list_amendments(
                ) -> ::std::result::Result<::std::vec::Vec<interceptor::Amendment>, tools::ToolError> {
                    let amendments = manifest().amendments.unwrap_or_default();
                    ::std::result::Result::Ok(amendments.into_iter().map(interceptor::Amendment::from).collect())
                }

                fn before(
                    tool: ::std::string::String,
                    arguments: ::std::string::String,
                    context: tools::CallContext,
                ) -> ::std::result::Result<interceptor::Decision, tools::ToolError> {
                    $crate::before::<$interceptor>(&tool, &arguments, context)
                }

                fn after(
                    tool: ::std::string::String,
                    arguments: ::std::string::String,
                    outcome: tools::ToolResult,
                    context: tools::CallContext,
                ) -> ::std::result::Result<::std::option::Option<tools::ToolResult>, tools::ToolError> {
                    $crate::after::<$interceptor>(&tool, &arguments, outcome, context)
                }
            }

            $crate::pyro_plugin_interceptor::export_interceptor!(
                Plugin with_types_in $crate::pyro_plugin_interceptor
            );
        };
    };
    ($($tool:ty),+ $(,)?) => {
        /// Returns the text of the component's `pyro:manifest` section.
        pub fn pyro_manifest() -> ::std::string::String {
            $crate::Manifest::new(::std::vec![$($crate::definition::<$tool>()),+], ::std::option::Option::None).text()
        }

        // The exports have names that only a component linker understands.
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::bindings::exports::pyro::plugin::tools;

            struct Plugin;

            impl tools::Guest for Plugin {
                fn list_tools() -> ::std::result::Result<::std::vec::Vec<tools::ToolDef>, tools::ToolError> {
                    let manifest = $crate::Manifest::stated_or($crate::stated_manifest!(), || {
                        $crate::Manifest::new(
                            ::std::vec![$($crate::definition::<$tool>()),+],
                            ::std::option::Option::None,
                        )
                    });
                    ::std::result::Result::Ok(manifest.tools.into_iter().map(tools::ToolDef::from).collect())
                }

                fn call(
                    name: ::std::string::String,
                    arguments: ::std::string::String,
                    context: tools::CallContext,
                ) -> ::std::result::Result<tools::ToolResult, tools::ToolError> {
                    $(
                        if name == <$tool as $crate::Tool>::NAME {
                            return $crate::answer::<$tool>(&arguments, context);
                        }
                    )+
                    ::std::result::Result::Err(
                        $crate::ToolError::new("unknown_tool", ::std::format!("this plugin has no tool `{name}`")).into(),
                    )
                }
            }

            $crate::bindings::export_platform!(Plugin with_types_in $crate::bindings);
        };
    };
}
