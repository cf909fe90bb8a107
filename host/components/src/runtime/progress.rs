//! One growing line of progress for a call, whoever reports: the component, or the engine while a machine is made.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::tool::CallObserver;

/// Shortest time between two reports of a component.
const INTERVAL: Duration = Duration::from_millis(50);

/// The progress of one call.
pub(crate) struct CallProgress {
    observer: Arc<dyn CallObserver>,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    /// The `done` that was passed on last; what follows is above it.
    done: f64,
    at: Option<Instant>,
    message: String,
}

impl CallProgress {
    pub(crate) fn new(observer: Arc<dyn CallObserver>) -> CallProgress {
        CallProgress { observer, last: Mutex::default() }
    }

    /// A component's own report: dropped when it does not grow or comes too fast.
    pub(crate) fn reported(&self, done: f64, total: Option<f64>, message: Option<&str>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let soon = last.at.is_some_and(|at| at.elapsed() < INTERVAL);
        if !done.is_finite() || done < 0.0 || (last.at.is_some() && done <= last.done) || soon {
            return;
        }
        let total = total.filter(|total| total.is_finite() && *total >= done);
        *last = Last { done, at: Some(Instant::now()), message: String::new() };
        drop(last);
        self.observer.progress(done, total, message);
    }

    /// What the host had to do before the next step is done: without this its last message would go on being shown.
    pub(crate) fn done_with_steps(&self, next: &str) {
        let stepped = !self.last.lock().unwrap_or_else(PoisonError::into_inner).message.is_empty();
        if stepped {
            self.step(next);
        }
    }

    /// A step of the host. It counts by one, whatever the component's own scale is, so that it always grows.
    fn step(&self, message: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.at.is_some_and(|at| at.elapsed() < INTERVAL) && last.message == message {
            return;
        }
        let done = last.done + 1.0;
        *last = Last { done, at: Some(Instant::now()), message: message.to_owned() };
        drop(last);
        self.observer.progress(done, None, Some(message));
    }
}

impl pyro_engine::Progress for CallProgress {
    fn report(&self, message: &str, done: f64, total: Option<f64>) {
        match total {
            Some(total) if total > 0.0 => {
                self.step(&format!("{message} ({:.0}%)", (done / total * 100.0).clamp(0.0, 100.0)));
            }
            _ => self.step(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pyro_engine::Progress;

    #[derive(Default)]
    struct Heard(Mutex<Vec<(f64, Option<String>)>>);

    impl CallObserver for Heard {
        fn progress(&self, done: f64, _: Option<f64>, message: Option<&str>) {
            self.0.lock().unwrap().push((done, message.map(str::to_owned)));
        }
    }

    #[test]
    fn progress_only_grows() {
        let heard = Arc::new(Heard::default());
        let progress = CallProgress::new(Arc::clone(&heard) as Arc<dyn CallObserver>);
        progress.done_with_steps("running");
        progress.report("fetching", 1.0, Some(4.0));
        progress.report("fetching", 1.0, Some(4.0));
        progress.report("booting", 0.0, None);
        progress.done_with_steps("running");
        for bad in [f64::NAN, -1.0, 0.5, f64::INFINITY] {
            progress.reported(bad, None, None);
        }
        std::thread::sleep(INTERVAL);
        progress.reported(1.0, None, None);
        progress.reported(10.0, None, Some("half"));
        progress.reported(11.0, None, None);
        let heard = heard.0.lock().unwrap();
        assert_eq!(
            *heard,
            [
                (1.0, Some("fetching (25%)".to_owned())),
                (2.0, Some("booting".to_owned())),
                (3.0, Some("running".to_owned())),
                (10.0, Some("half".to_owned())),
            ]
        );
    }
}
