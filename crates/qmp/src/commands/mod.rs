//! The commands, one file per family, named as in QEMU's schema (qapi/*.json).

/// Declares a command: its name, arguments and return value, as in QEMU's schema.
#[macro_export]
macro_rules! command {
    ($(#[$doc:meta])* $name:ident = $text:literal -> $return:ty $({ $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name { $($($(#[$field_doc])* pub $field: $type,)*)? }

        impl $crate::Command for $name {
            const NAME: &'static str = $text;
            type Return = $return;
        }
    };
}

pub mod block;
pub mod machine;
pub mod misc;
pub mod run_state;
