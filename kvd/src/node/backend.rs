//! What INFO says of the engine.

use super::Node;
use crate::storage::{Call, Caps, Cost, Costs, Engine, Origin};

impl Node {
    /// The lines of INFO's `# Backend`.
    pub fn backend_info(&self) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        let Ok(core) = self.core() else { return lines };
        let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
        let engine = core.machine.store().engine().clone();
        let caps = engine.caps();
        line("backend_name", engine.name().to_owned());
        line("backend_version", engine.version().to_owned());
        if let Some(origin) = engine.origin() {
            of_origin(&origin, &mut line);
        }
        line("backend_capabilities", caps.names().join(","));
        line("backend_views", caps.contains(Caps::VIEW).to_string());
        let applied = core.machine.progress().borrow().index;
        let durable = core.machine.durable().map_or(0, |mark| mark.index());
        line("backend_applied_index", applied.to_string());
        line("backend_durable_index", durable.to_string());
        // The two are not read at one moment.
        let behind = applied.saturating_sub(durable);
        line("backend_durable_behind", behind.to_string());
        let waiting = core.machine.store().waiting();
        line("backend_waiting_bytes", waiting.bytes.to_string());
        line("backend_waiting_changes", waiting.changes.to_string());
        line("backend_waiting_layers", waiting.layers.to_string());
        let kept = core.machine.store().kept_bytes();
        line("backend_kept_bytes", kept.to_string());
        let cache = core.machine.store().cache_counts();
        line("backend_read_cache_bytes", cache.bytes.to_string());
        line("backend_read_cache_hits", cache.hits.to_string());
        line("backend_read_cache_misses", cache.misses.to_string());
        if let Some(costs) = engine.costs() {
            of_costs(costs, &mut line);
        }
        of_properties(&*engine, &mut line);
        lines
    }
}

fn of_origin(origin: &Origin, line: &mut dyn FnMut(&str, String)) {
    line("backend_interface", origin.interface.to_string());
    line("backend_plugin_api", origin.plugin_api.clone());
    let build = if origin.debug { "debug" } else { "release" };
    line("backend_build", build.to_owned());
    line("backend_file", origin.file.clone());
    for (name, value) in &origin.options {
        line(&format!("backend_option_{name}"), value.clone());
    }
}

fn of_costs(costs: &Costs, line: &mut dyn FnMut(&str, String)) {
    for call in Call::ALL {
        let Cost { calls, us, us_max } = costs.of(call);
        let each = us / calls.max(1) as f64;
        let text = format!(
            "calls={calls},usec={us:.0},usec_per_call={each:.3},max_usec={us_max:.3},timed=1/{}",
            call.per_sample()
        );
        line(&format!("backend_call_{}", call.name()), text);
    }
    line("backend_changes_written", costs.changes().to_string());
}

fn of_properties(engine: &dyn Engine, line: &mut dyn FnMut(&str, String)) {
    for name in engine.properties() {
        if let Some(value) = engine.property(&name) {
            line(&name.replace(['.', '-'], "_"), value);
        }
    }
}
