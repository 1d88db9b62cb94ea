//! Placeholder for board.
