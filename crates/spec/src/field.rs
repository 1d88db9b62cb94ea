use std::path::PathBuf;

use crate::Value;

/// A type that a property can have.
pub trait Field: Sized {
    /// The type in words, for help: `"integer"`, `"on|off"`.
    fn kind() -> String;

    /// Reads what the user wrote.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    fn from_value(value: &Value) -> Result<Self, String>;

    /// The value as the user would write it; `None` when it is absent.
    fn to_value(&self) -> Option<Value>;

    /// What a missing property without a default means; `None` when it must be given.
    fn absent() -> Option<Self> {
        None
    }
}

/// A number of bytes: `512`, `64K`, `1M`, `2G`, `1T` (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        match units
            .iter()
            .find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift)
        {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected a size in bytes such as 512, 64K, 512M or 2G".to_owned();
        let body = text.strip_suffix(['B', 'b']).unwrap_or(text);
        let body = body.strip_suffix(['i']).unwrap_or(body);
        let (digits, shift) = match body.char_indices().last() {
            Some((at, unit)) if unit.is_ascii_alphabetic() => {
                let shift = match unit.to_ascii_uppercase() {
                    'K' => 10,
                    'M' => 20,
                    'G' => 30,
                    'T' => 40,
                    _ => return Err(wrong()),
                };
                (&body[..at], shift)
            }
            Some(_) => (body, 0),
            None => return Err(wrong()),
        };
        if let Ok(whole) = digits.parse::<u64>() {
            let bytes = whole.checked_shl(shift).filter(|b| b >> shift == whole);
            return bytes
                .map(Size)
                .ok_or_else(|| "the size is too large".to_owned());
        }
        let fraction: f64 = digits.parse().map_err(|_| wrong())?;
        let bytes = fraction * (1u64 << shift) as f64;
        if shift == 0 || !bytes.is_finite() || bytes < 0.0 || bytes >= u64::MAX as f64 {
            return Err(wrong());
        }
        Ok(Size(bytes as u64))
    }
}

impl Field for Size {
    fn kind() -> String {
        "size".into()
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        match value {
            Value::Int(n) => u64::try_from(*n)
                .map(Size)
                .map_err(|_| "expected a size that is not negative".into()),
            Value::Text(text) => text.parse(),
            Value::Bool(_) | Value::List(_) => Err("expected a size such as 512M or 2G".into()),
        }
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(self.to_string()))
    }
}

impl Field for bool {
    fn kind() -> String {
        "on|off".into()
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        match value {
            Value::Bool(on) => Ok(*on),
            Value::Text(text) => match text.as_str() {
                "on" | "yes" | "true" => Ok(true),
                "off" | "no" | "false" => Ok(false),
                _ => Err("expected on or off".into()),
            },
            Value::Int(_) | Value::List(_) => Err("expected on or off".into()),
        }
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Bool(*self))
    }
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Field for $int {
            fn kind() -> String {
                "integer".into()
            }

            fn from_value(value: &Value) -> Result<Self, String> {
                let wrong = || format!("expected an integer from {} to {}", <$int>::MIN, <$int>::MAX);
                let number = match value {
                    Value::Int(n) => *n,
                    Value::Text(text) => match text.strip_prefix("0x") {
                        Some(hex) => i128::from_str_radix(hex, 16).map_err(|_| wrong())?,
                        None => text.parse().map_err(|_| wrong())?,
                    },
                    Value::Bool(_) | Value::List(_) => return Err(wrong()),
                };
                <$int>::try_from(number).map_err(|_| wrong())
            }

            fn to_value(&self) -> Option<Value> {
                Some(Value::Int(i128::from(*self)))
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, i32, i64);

impl Field for String {
    fn kind() -> String {
        "text".into()
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        match value {
            Value::Text(text) => Ok(text.clone()),
            Value::Int(_) | Value::Bool(_) => Ok(value.to_string()),
            Value::List(_) => Err("expected one value, not several".into()),
        }
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(self.clone()))
    }
}

impl Field for PathBuf {
    fn kind() -> String {
        "path".into()
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        match value {
            Value::Text(text) if !text.is_empty() => Ok(text.into()),
            _ => Err("expected a path".into()),
        }
    }

    fn to_value(&self) -> Option<Value> {
        Some(Value::Text(self.display().to_string()))
    }
}

impl<T: Field> Field for Option<T> {
    fn kind() -> String {
        T::kind()
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        T::from_value(value).map(Some)
    }

    fn to_value(&self) -> Option<Value> {
        self.as_ref().and_then(Field::to_value)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// A property that may be given several times (`hostfwd=..,hostfwd=..`), or as a list.
impl<T: Field> Field for Vec<T> {
    fn kind() -> String {
        format!("{} (may be repeated)", T::kind())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        match value {
            Value::List(items) => items.iter().map(T::from_value).collect(),
            one => Ok(vec![T::from_value(one)?]),
        }
    }

    fn to_value(&self) -> Option<Value> {
        let items: Vec<Value> = self.iter().filter_map(Field::to_value).collect();
        (!items.is_empty()).then_some(Value::List(items))
    }

    fn absent() -> Option<Self> {
        Some(Vec::new())
    }
}
