/// Declares a [`Spec`](crate::Spec): see the crate's first page.
///
/// The property's name is the field's with `-` for `_`. A field without a default must be given,
/// unless its type has an absent value (`Option`, `Vec`).
#[macro_export]
macro_rules! spec {
    (
        $(#[doc = $help:literal])*
        pub struct $name:ident($spec:literal) {
            $(
                $(#[doc = $field_help:literal])*
                $field:ident: $type:ty $(= $default:expr)?,
            )*
        }
    ) => {
        $(#[doc = $help])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $(
                $(#[doc = $field_help])*
                pub $field: $type,
            )*
        }

        impl $crate::Spec for $name {
            const NAME: &'static str = $spec;
            const HELP: &'static str = concat!($($help, "\n"),*).trim_ascii();

            fn properties() -> Vec<$crate::Property> {
                vec![$({
                    let default: Option<$type> = $crate::spec!(@default $($default)?);
                    let absent = <$type as $crate::Field>::absent().is_some();
                    $crate::Property {
                        name: stringify!($field).replace('_', "-"),
                        kind: <$type as $crate::Field>::kind(),
                        required: default.is_none() && !absent,
                        default: default.as_ref().and_then($crate::Field::to_value).map(|v| v.to_string()),
                        help: $crate::__private::help(&[$($field_help),*]),
                    }
                }),*]
            }

            fn from_properties(mut given: $crate::Properties) -> Result<Self, $crate::SpecError> {
                given.only($spec, &Self::properties())?;
                Ok(Self {
                    $($field: $crate::__private::take(
                        $spec,
                        &stringify!($field).replace('_', "-"),
                        || $crate::__private::help(&[$($field_help),*]),
                        &mut given,
                        $crate::spec!(@default $($default)?),
                    )?,)*
                })
            }

            fn to_properties(&self) -> $crate::Properties {
                let mut properties = $crate::Properties::new();
                $(
                    if let Some(value) = $crate::Field::to_value(&self.$field) {
                        properties.set(&stringify!($field).replace('_', "-"), value);
                    }
                )*
                properties
            }
        }
    };
    (@default $default:expr) => { Some($default) };
    (@default) => { None };
}

/// Declares an enumeration that a property can have: its values are words.
#[macro_export]
macro_rules! choice {
    (
        $(#[doc = $help:literal])*
        pub enum $name:ident {
            $(
                $(#[doc = $variant_help:literal])*
                $variant:ident = $word:literal,
            )*
        }
    ) => {
        $(#[doc = $help])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $(
                $(#[doc = $variant_help])*
                $variant,
            )*
        }

        impl $name {
            /// The word that the user writes.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl $crate::Field for $name {
            fn kind() -> String {
                [$($word),*].join("|")
            }

            fn from_value(value: &$crate::Value) -> Result<Self, String> {
                let text = value.to_string();
                match text.as_str() {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(match $crate::nearest(&text, [$($word),*]) {
                        Some(near) => format!("did you mean {near:?}?"),
                        None => format!("expected one of {}", [$($word),*].join(", ")),
                    }),
                }
            }

            fn to_value(&self) -> Option<$crate::Value> {
                Some($crate::Value::Text(self.word().to_owned()))
            }
        }
    };
}
