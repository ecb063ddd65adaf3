//! Values of a file as serde takes them, with the place of each mistake.
//!
//! A word without quotes is what the field wants it to be: `8080` is text where text is wanted,
//! `no` is never a truth value.

use std::fmt::Display;

use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::{Deserializer, forward_to_deserialize_any};

use super::yaml::{Node, Place, Value};

/// No longer word is compared with what there is: it costs the product of the lengths.
const MAX_COMPARED: usize = 32;

/// What is wrong, where, and what may have been meant.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) message: String,
    /// The word that is wrong, where it helps to be shown it.
    pub(super) word: Option<String>,
    pub(super) hint: Option<String>,
    pub(super) at: Option<Place>,
}

impl Mistake {
    fn unknown(what: &str, word: &str, known: &[&str]) -> Self {
        let hint = match nearest(word, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of: {}", known.join(", ")),
        };
        // The file may hold anything; a terminal obeys some of it.
        let word: String = word.chars().take(MAX_COMPARED).collect();
        Self {
            hint: Some(hint),
            word: Some(word),
            ..de::Error::custom(format_args!("there is no {what}"))
        }
    }
}

impl Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: Display>(message: T) -> Self {
        Self {
            message: message.to_string(),
            word: None,
            hint: None,
            at: None,
        }
    }

    /// Without what is there, which may be the value of a variable or a secret.
    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown("key", field, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown("value", variant, expected)
    }
}

/// The known word that is like this one.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    if word.len() > MAX_COMPARED {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let distances = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&word, known), *known));
    let (distance, near) = distances.min_by_key(|(distance, _)| *distance)?;
    let part = word.len() >= 3 && near.starts_with(&word);
    // Two slips in a long word, one in a short one.
    (part || distance <= 1 + usize::from(near.len() > 4)).then_some(near)
}

/// Reads one value.
pub(super) struct Reader<'a>(pub(super) &'a Node);

impl Reader<'_> {
    /// Says where it happened, unless that is known more precisely.
    fn place<T>(&self, result: Result<T, Mistake>) -> Result<T, Mistake> {
        result.map_err(|mut mistake| {
            mistake.at.get_or_insert(self.0.at);
            mistake
        })
    }

    fn mistake(&self, message: impl Into<String>, hint: Option<&str>) -> Mistake {
        Mistake {
            message: message.into(),
            word: None,
            hint: hint.map(Into::into),
            at: Some(self.0.at),
        }
    }

    /// The word, if it was written without quotes.
    fn plain(&self) -> Option<&str> {
        match &self.0.value {
            Value::Scalar { text, plain: true } => Some(text),
            _ => None,
        }
    }

    fn number(&self) -> Result<u64, Mistake> {
        let shown = self.plain().filter(|text| text.len() <= MAX_COMPARED);
        let Some(text) = shown else {
            return Err(self.mistake("expected a number", None));
        };
        let octal = text.len() > 1
            && text.starts_with('0')
            && text.bytes().all(|byte| byte.is_ascii_digit());
        if octal {
            let hint = format!("write 0o{}", text.trim_start_matches('0'));
            return Err(self.mistake(format!("{text} may be octal or not"), Some(&hint)));
        }
        let number = if let Some(digits) = text.strip_prefix("0o") {
            u64::from_str_radix(digits, 8)
        } else if let Some(digits) = text.strip_prefix("0x") {
            u64::from_str_radix(digits, 16)
        } else {
            text.parse()
        };
        let signed = text.contains(['+', '-']);
        number
            .ok()
            .filter(|_| !signed)
            .ok_or_else(|| self.mistake(format!("expected a number, not {text:?}"), None))
    }

    fn list<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Mistake> {
        let Value::List(items) = &self.0.value else {
            return Err(self.mistake(format!("expected a list, not {}", self.kind()), None));
        };
        let mut items = Items(items.iter());
        let value = self.place(visitor.visit_seq(&mut items))?;
        match items.0.next() {
            Some(more) => Err(Reader(more).mistake("this is one value too many", None)),
            None => Ok(value),
        }
    }

    fn map<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Mistake> {
        let Value::Map(entries) = &self.0.value else {
            return Err(self.mistake(
                format!("expected keys with values, not {}", self.kind()),
                None,
            ));
        };
        self.place(visitor.visit_map(Entries {
            entries: entries.iter(),
            value: None,
        }))
    }

    fn kind(&self) -> &'static str {
        match &self.0.value {
            Value::Scalar { .. } if self.0.is_null() => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "keys with values",
        }
    }
}

/// Methods of numbers, which are all read the same way.
macro_rules! numbers {
    ($($method:ident)+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
            let number = self.number()?;
            self.place(visitor.visit_u64(number))
        }
    )+};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Mistake;

    numbers! { deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.0.value {
            Value::Scalar { .. } if self.0.is_null() => self.place(visitor.visit_unit()),
            Value::Scalar { text, .. } => self.place(visitor.visit_str(text)),
            Value::List(_) => self.list(visitor),
            Value::Map(_) => self.map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.plain() {
            Some("true") => self.place(visitor.visit_bool(true)),
            Some("false") => self.place(visitor.visit_bool(false)),
            _ => Err(self.mistake("expected true or false", None)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.0.value {
            Value::Scalar { text, .. } if !self.0.is_null() => self.place(visitor.visit_str(text)),
            Value::Scalar { .. } => {
                Err(self.mistake("expected text", Some("write \"\" for empty text")))
            }
            _ => Err(self.mistake(format!("expected text, not {}", self.kind()), None)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        if self.0.is_null() {
            return visitor.visit_none();
        }
        let at = Self(self.0);
        at.place(visitor.visit_some(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.list(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _count: usize,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.map(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let choice = match &self.0.value {
            Value::Map(entries) => match entries.as_slice() {
                [(key, value)] => Choice {
                    key,
                    value: Some(value),
                },
                _ => return Err(self.mistake("expected one key with its value", None)),
            },
            _ => Choice {
                key: self.0,
                value: None,
            },
        };
        self.place(visitor.visit_enum(choice))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple_struct
        ignored_any
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mistake> {
        let Some(node) = self.0.next() else {
            return Ok(None);
        };
        let read = seed.deserialize(Reader(node));
        Reader(node).place(read).map(Some)
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (Node, Node)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mistake> {
        let Some((key, value)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(Reader(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let node = self.value.take();
        let node = node.ok_or_else(|| <Mistake as de::Error>::custom("a value is missing"))?;
        let read = seed.deserialize(Reader(node));
        Reader(node).place(read)
    }
}

/// One of several, with what belongs to it.
struct Choice<'a> {
    key: &'a Node,
    value: Option<&'a Node>,
}

impl<'de, 'a> EnumAccess<'de> for Choice<'a> {
    type Error = Mistake;
    type Variant = Content<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Content<'a>), Mistake> {
        let read = seed.deserialize(Reader(self.key))?;
        Ok((
            read,
            Content {
                key: self.key,
                value: self.value,
            },
        ))
    }
}

struct Content<'a> {
    key: &'a Node,
    value: Option<&'a Node>,
}

impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = Mistake;

    fn unit_variant(self) -> Result<(), Mistake> {
        match self.value.filter(|node| !node.is_null()) {
            Some(node) => Err(Reader(node).mistake("there is no value here", None)),
            None => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Mistake> {
        match self.value {
            Some(node) => seed.deserialize(Reader(node)),
            None => Err(Reader(self.key).mistake(
                "a value belongs to this",
                Some("write it as a key, such as `text: \"content\"`"),
            )),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, count: usize, visitor: V) -> Result<V::Value, Mistake> {
        let node = self.value.unwrap_or(self.key);
        Reader(node).deserialize_tuple(count, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        Reader(self.value.unwrap_or(self.key)).map(visitor)
    }
}

impl<'de> IntoDeserializer<'de, Mistake> for Reader<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
