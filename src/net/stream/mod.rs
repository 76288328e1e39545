//! The bytes of a connection: counted, and bounded, on their way to the driver.

pub(crate) mod bounded;
pub(crate) mod tapped;
pub(crate) mod traffic;
