//! The application's side of us: listening, login.

pub mod authenticate;
pub mod listener;
pub mod login;
pub mod secrets;
pub mod startup_settings;
