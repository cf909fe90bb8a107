//! Probes: whether something is ready. Each is one attempt, made by a worker.

use pyro_agent_protocol::{Done, Readiness, codes};

use crate::peer::Fail;

/// Tries once.
///
/// # Errors
/// What to answer when the attempt cannot be made.
pub fn probe(what: &Readiness) -> Result<Done, Fail> {
    let _ = what;
    Err(Fail::new(codes::UNSUPPORTED, "this agent does not know operation \"service_probe\""))
}
