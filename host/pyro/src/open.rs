//! One door to everything: directories, engine, profiles, toolboxes.

use std::path::PathBuf;

use pyro_components::{Builtins, HostServices, LoadError, ResolvedProfile, Toolbox};
use pyro_engine::environments::Environments;
use pyro_engine::{AgentSource, Engine, EngineChoice, EngineError, EngineOptions, Paths};

use crate::artifacts;
use crate::mcp::Server;

/// What is embedded in this build.
pub const BUILTINS: Builtins =
    Builtins { components: artifacts::BUILTIN_COMPONENTS, profiles: artifacts::BUILTIN_PROFILES };

/// How to open pyro. The default is right for the `pyro` program.
#[derive(Debug, Clone, Default)]
pub struct PyroConfig {
    /// Where state, cache and run directories are; by default as [`Paths::from_env`] says.
    pub paths: Option<Paths>,
    /// Which engine to use, over what a profile says.
    pub engine: Option<EngineChoice>,
    /// A kernel for every microVM instead of its environment's: an ELF or bzImage file.
    pub kernel: Option<PathBuf>,
    /// The `pyro` program, which is also the VM process; by default the running program. A program that uses this
    /// library must name it.
    pub program: Option<PathBuf>,
}

/// Why pyro cannot be opened or a profile not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No directory to work in.
    #[error(transparent)]
    Directories(std::io::Error),
    /// The engine cannot be opened.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The profile cannot be used.
    #[error(transparent)]
    Profile(#[from] LoadError),
}

/// An opened pyro: directories and settings, nothing running. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pyro {
    paths: Paths,
    options: EngineOptions,
    engine_choice: Option<EngineChoice>,
}

impl Pyro {
    /// Opens pyro. Starts nothing.
    ///
    /// # Errors
    /// When the directories cannot be determined.
    pub fn open(config: PyroConfig) -> Result<Pyro, OpenError> {
        let paths = match config.paths {
            Some(paths) => paths,
            None => Paths::from_env().map_err(OpenError::Directories)?,
        };
        let mut options = EngineOptions::with_agent(AgentSource(artifacts::AGENT))?;
        if let Some(program) = config.program {
            options.vmm_program = program;
        }
        options.kernel = config.kernel;
        if let Some(engine) = config.engine {
            options.engine = engine;
        }
        Ok(Pyro { paths, options, engine_choice: config.engine })
    }

    /// Returns the directories.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Opens the engine without a profile.
    ///
    /// # Errors
    /// When its directories cannot be used.
    pub fn engine(&self) -> Result<Engine, OpenError> {
        Ok(Engine::open(self.paths.clone(), self.options.clone())?)
    }

    /// Returns the environments. Touches no file.
    pub fn environments(&self) -> Environments {
        Environments::new(&self.paths, self.options.agent)
    }

    /// Returns which engine microVMs run on without a profile's wish.
    pub fn engine_choice(&self) -> EngineChoice {
        self.options.engine
    }

    /// Reads and checks a profile: a built-in name, or the path of a TOML file. Runs no component code.
    ///
    /// # Errors
    /// Every mistake found in it.
    pub fn profile(&self, reference: &str) -> Result<ResolvedProfile, OpenError> {
        Ok(ResolvedProfile::open(reference, &BUILTINS)?)
    }

    /// Makes a profile's tools callable. Starts no microVM and compiles nothing.
    ///
    /// # Errors
    /// When the engine cannot be opened, or the tools do not fit the profile.
    pub fn toolbox(&self, profile: &ResolvedProfile) -> Result<Toolbox, OpenError> {
        let mut options = self.options.clone();
        if self.engine_choice.is_none() {
            options.engine = profile.host.engine;
        }
        if profile.host.max_machines.is_some() {
            options.max_machines = profile.host.max_machines;
        }
        let services = HostServices {
            engine: Engine::open(self.paths.clone(), options)?,
            aot_cache_dir: self.paths.cache.join("components"),
            aot_state_dir: self.paths.state.join("components"),
        };
        Ok(Toolbox::load(profile, services)?)
    }

    /// Makes an MCP server of a profile's tools: a built-in name, or the path of a TOML file. Starts nothing.
    ///
    /// # Errors
    /// As [`Pyro::profile`] and [`Pyro::toolbox`].
    pub fn create_server(&self, profile: &str) -> Result<Server, OpenError> {
        let profile = self.profile(profile)?;
        Ok(Server::new(self.toolbox(&profile)?, profile.instructions))
    }
}
