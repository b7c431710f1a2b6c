//! A timeline that chrome://tracing and ui.perfetto.dev open: the Trace Event Format's JSON, complete events only.
//!
//! A process is a test on a backend; its threads are the host, which records, and the device, which computes.

use serde_json::{Value, json};

use super::on_threads;
use crate::bench::stages::StagesResult;
use crate::bench::subject::BenchSubject;
use crate::environment::Environment;

/// The timelines of several tests, one after another.
#[derive(Default)]
pub struct PerfettoTrace {
    events: Vec<Value>,
    tests: usize,
}

impl PerfettoTrace {
    /// Adds the timeline of a test.
    pub fn add(&mut self, subject: &BenchSubject, result: &StagesResult) {
        self.tests += 1;
        let pid = self.tests;
        let name = format!("{} · {}", on_threads(&subject.info.backend, subject.threads), result.test);
        let mut named = |what: &str, tid: usize, name: &str| {
            self.events.push(json!({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}));
        };
        named("process_name", 0, &name);
        named("thread_name", 1, "host");
        if result.timeline.iter().any(|e| e.device) {
            named("thread_name", 2, &subject.info.adapter);
        }
        for event in &result.timeline {
            let [begin, end] = event.span;
            self.events.push(json!({
                "ph": "X",
                "name": event.site.stage.name(),
                "cat": &*event.name,
                "pid": pid,
                "tid": if event.device { 2 } else { 1 },
                // In microseconds.
                "ts": begin * 1e6,
                "dur": (end - begin) * 1e6,
                "args": {"kernel": &*event.name, "layer": event.site.layer},
            }));
        }
        if result.timeline_cut {
            let end = result.timeline.iter().map(|e| e.span[1]).fold(0.0, f64::max);
            let name = "the timeline ends here, the test does not";
            self.events.push(json!({"ph": "i", "name": name, "s": "p", "pid": pid, "tid": 1, "ts": end * 1e6}));
        }
    }

    /// The file's content.
    pub fn json(&self) -> Value {
        json!({"traceEvents": self.events, "displayTimeUnit": "ms", "otherData": Environment::here()})
    }
}
