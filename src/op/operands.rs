//! What the operands of an operation must be.
