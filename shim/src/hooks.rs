//! Hook bodies, by family. They take what the program passed and return what the kernel returned.

pub mod aio;
pub mod attributes;
pub mod blocking;
pub mod copy;
pub mod descriptor;
pub mod identify;
pub mod jump;
pub mod loader;
pub mod mapping;
pub mod memory;
pub mod names;
pub mod numbered;
pub mod open;
pub mod process;
pub mod resize;
pub mod target;
pub mod write;
