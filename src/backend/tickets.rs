//! Copies to the host under way.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::op::HostTensor;

/// A copy to the host under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Tickets for backends whose values are on the host already: a copy is finished when it is started.
#[derive(Default)]
pub struct HostTickets {
    next: u64,
    ready: HashMap<u64, HostTensor>,
}

impl HostTickets {
    /// Keeps `values` until the ticket is taken.
    pub fn put(&mut self, values: HostTensor) -> Ticket {
        self.next += 1;
        self.ready.insert(self.next, values);
        Ticket(self.next)
    }
    /// # Errors
    /// If the ticket was taken already or is another backend's.
    pub fn take(&mut self, ticket: Ticket) -> Result<HostTensor> {
        self.ready
            .remove(&ticket.0)
            .ok_or_else(|| Error::cannot_run(format!("ticket {} was taken already or is another backend's", ticket.0)))
    }
}
