//! Sessions of tower-sessions.
