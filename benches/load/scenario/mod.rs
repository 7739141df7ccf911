//! What can be measured, one file each: its options, its run, its report. What all of them need of sockets
//! and figures is beside this folder.

pub(crate) mod churn;
pub(crate) mod fan_out;
pub(crate) mod idle;
pub(crate) mod presence;
pub(crate) mod publish;
pub(crate) mod sweep;
pub(crate) mod whisper;
