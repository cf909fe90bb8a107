//! What a client hears while a call runs.
//!
//! A client that sent a progress token hears what the plugin and the engine report, and when they are silent a sign of
//! life every [`HEARTBEAT`]: some hosts give up on a call after 60 s of silence, and every notification starts their
//! clock again.
//!
//! MCP wants the value to grow with every notification. The plugin's own values are kept when they grow; anything else
//! (a heartbeat, a second phase that starts over) adds [`SMALL_STEP`] to the last one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyro_components::CallObserver;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::{Peer, RoleServer};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Silence after which the client hears that the call still runs.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);
/// Reports that may go out at once; after them the rate is one per [`MIN_GAP`].
const BURST: u32 = 20;
/// Shortest time between two notifications in the long run; reports in between are replaced by later ones.
const MIN_GAP: Duration = Duration::from_millis(100);
/// Reports kept while the client is slow; the oldest is dropped for a new one.
const MAX_PENDING: usize = 64;
/// What a notification without a value of its own adds.
const SMALL_STEP: f64 = 0.001;

/// One report of a call.
#[derive(Debug, Clone, PartialEq)]
struct Report {
    done: f64,
    total: Option<f64>,
    message: Option<String>,
}

/// Takes reports from the call, without ever waiting.
#[derive(Default)]
pub(crate) struct Reports {
    pending: Mutex<std::collections::VecDeque<Report>>,
    arrived: Notify,
}

impl CallObserver for Reports {
    fn progress(&self, done: f64, total: Option<f64>, message: Option<&str>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.len() == MAX_PENDING {
            pending.pop_front();
        }
        pending.push_back(Report { done, total, message: message.map(str::to_owned) });
        self.arrived.notify_one();
    }
}

impl Reports {
    fn next(&self) -> Option<Report> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn last(&self) -> Option<Report> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).drain(..).next_back()
    }
}

/// Sends the reports of one call to its client.
pub(crate) struct ProgressSender {
    reports: Arc<Reports>,
    peer: Peer<RoleServer>,
    token: ProgressToken,
    scale: Scale,
    started: Instant,
    last_sent: Instant,
    /// Notifications that may go out at once now.
    burst: u32,
}

impl ProgressSender {
    pub(crate) fn new(reports: Arc<Reports>, peer: Peer<RoleServer>, token: ProgressToken) -> ProgressSender {
        let now = Instant::now();
        ProgressSender { reports, peer, token, scale: Scale::default(), started: now, last_sent: now, burst: BURST }
    }

    /// Sends reports and heartbeats for as long as it is polled. Must be dropped with the call.
    pub(crate) async fn run(&mut self) {
        loop {
            let heartbeat = self.last_sent + HEARTBEAT;
            tokio::select! {
                () = self.reports.arrived.notified() => self.send_pending().await,
                () = tokio::time::sleep_until(heartbeat) => {
                    let elapsed = self.started.elapsed().as_secs();
                    let sign_of_life = self.scale.heartbeat(elapsed);
                    self.send(sign_of_life).await;
                }
            }
        }
    }

    /// Sends the last report that waits, if any: the call is over, and its answer comes next.
    pub(crate) async fn finish(&mut self) {
        while self.burst > 1 {
            let Some(report) = self.reports.next() else {
                return;
            };
            self.send_report(report).await;
        }
        if let Some(report) = self.reports.last() {
            self.send_report(report).await;
        }
    }

    async fn send_pending(&mut self) {
        while let Some(mut report) = self.reports.next() {
            let earned = u32::try_from(self.last_sent.elapsed().as_millis() / MIN_GAP.as_millis()).unwrap_or(BURST);
            self.burst = self.burst.saturating_add(earned).min(BURST);
            if self.burst == 0 {
                tokio::time::sleep_until(self.last_sent + MIN_GAP).await;
                self.burst = 1;
                report = self.reports.last().unwrap_or(report);
            }
            self.send_report(report).await;
        }
    }

    async fn send_report(&mut self, report: Report) {
        let report = self.scale.report(report);
        self.burst = self.burst.saturating_sub(1);
        self.send(report).await;
    }

    async fn send(&mut self, report: Report) {
        self.last_sent = Instant::now();
        let mut notification = ProgressNotificationParam::new(self.token.clone(), report.done);
        notification.total = report.total;
        notification.message = report.message;
        if let Err(error) = self.peer.notify_progress(notification).await {
            tracing::debug!(%error, "cannot send progress");
        }
    }
}

/// Makes values grow.
#[derive(Debug, Default)]
struct Scale {
    last: Option<f64>,
    total: Option<f64>,
    message: Option<String>,
}

impl Scale {
    fn report(&mut self, report: Report) -> Report {
        let done = self.grown(report.done);
        self.total = report.total.filter(|total| total.is_finite() && *total >= done);
        self.message.clone_from(&report.message);
        Report { done, total: self.total, message: report.message }
    }

    fn heartbeat(&mut self, elapsed_seconds: u64) -> Report {
        let done = self.grown(f64::NEG_INFINITY);
        self.total = self.total.filter(|total| *total >= done);
        let message = match &self.message {
            Some(message) => format!("{message} ({elapsed_seconds} s)"),
            None => format!("running for {elapsed_seconds} s"),
        };
        Report { done, total: self.total, message: Some(message) }
    }

    fn grown(&mut self, wanted: f64) -> f64 {
        let value = match self.last {
            None if wanted.is_finite() => wanted,
            None => 0.0,
            Some(last) if wanted.is_finite() && wanted > last => wanted,
            // A step that is lost in a large number is no step.
            Some(last) => (last + SMALL_STEP).max(last.next_up()),
        };
        self.last = Some(value);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(done: f64, total: Option<f64>) -> Report {
        Report { done, total, message: Some("m".to_owned()) }
    }

    #[test]
    fn growing_values_pass_unchanged() {
        let mut scale = Scale::default();
        for done in [0.0, 50.0, 100.0] {
            assert_eq!(scale.report(report(done, Some(100.0))), report(done, Some(100.0)));
        }
    }

    #[test]
    fn every_value_is_above_the_one_before() {
        let mut scale = Scale::default();
        let mut last = f64::NEG_INFINITY;
        for wanted in [3.0, 3.0, 1.0, f64::NAN, f64::INFINITY, 1e300, 0.0, 2e300, -5.0] {
            let sent = scale.report(report(wanted, Some(10.0)));
            assert!(sent.done > last && sent.done.is_finite(), "{wanted}: {} after {last}", sent.done);
            assert!(sent.total.is_none_or(|total| total >= sent.done));
            last = sent.done;
            let sent = scale.heartbeat(7);
            assert!(sent.done > last);
            last = sent.done;
        }
    }

    #[test]
    fn a_heartbeat_repeats_what_is_being_done() {
        let mut scale = Scale::default();
        assert_eq!(scale.heartbeat(5).message.as_deref(), Some("running for 5 s"));
        scale.report(report(1.0, None));
        assert_eq!(scale.heartbeat(10).message.as_deref(), Some("m (10 s)"));
    }

    #[test]
    fn reports_are_bounded() {
        let reports = Reports::default();
        for index in 0..1000 {
            reports.progress(f64::from(index), None, None);
        }
        assert_eq!(reports.next().map(|r| r.done), Some(936.0));
        assert_eq!(reports.last().map(|r| r.done), Some(999.0));
        assert_eq!(reports.next(), None);
    }
}
