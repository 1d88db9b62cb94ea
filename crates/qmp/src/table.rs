use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::QmpError;

/// A command: its name and the types of its arguments (the implementing type) and return value.
///
/// Arguments should be `deny_unknown_fields`: a misspelt argument is an error, not a default.
pub trait Command: DeserializeOwned {
    /// Name, as in `{"execute": NAME}`.
    const NAME: &'static str;
    /// What it returns.
    type Return: Serialize;
}

/// No arguments, or nothing to return: an empty object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

type Handler<C> = Box<dyn Fn(&mut C, Map<String, Value>) -> Result<Value, QmpError> + Send + Sync>;

/// The commands that a program offers, each with its handler on a context `C`.
pub struct Table<C> {
    handlers: BTreeMap<&'static str, Handler<C>>,
}

impl<C> Default for Table<C> {
    fn default() -> Self {
        Self {
            handlers: BTreeMap::new(),
        }
    }
}

impl<C> Table<C> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers a command.
    #[must_use]
    pub fn on<Q: Command>(
        mut self,
        handle: impl Fn(&mut C, Q) -> Result<Q::Return, QmpError> + Send + Sync + 'static,
    ) -> Self {
        let handler = move |context: &mut C, arguments: Map<String, Value>| {
            let command = Q::deserialize(Value::Object(arguments))
                .map_err(|e| QmpError::generic(format!("{}: {e}", Q::NAME)))?;
            let value = handle(context, command)?;
            serde_json::to_value(value).map_err(|e| QmpError::generic(format!("{}: {e}", Q::NAME)))
        };
        self.handlers.insert(Q::NAME, Box::new(handler));
        self
    }

    /// The names of the commands, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.handlers.keys().copied()
    }

    /// Runs a command.
    ///
    /// # Errors
    /// No such command, arguments of the wrong shape, or what the handler says.
    pub fn run(
        &self,
        context: &mut C,
        name: &str,
        arguments: Map<String, Value>,
    ) -> Result<Value, QmpError> {
        match self.handlers.get(name) {
            Some(handler) => handler(context, arguments),
            None => Err(QmpError::no_command(format!(
                "The command {name} has not been found"
            ))),
        }
    }
}

/// What a command says when it is done, which may take a while.
pub type Answer = Pin<Box<dyn Future<Output = Result<Value, QmpError>>>>;

type AsyncHandler<C> = Box<dyn Fn(Arc<C>, Map<String, Value>) -> Answer + Send + Sync>;

/// As [`Table`], for commands that take their time: each handler is a future.
pub struct AsyncTable<C> {
    handlers: BTreeMap<&'static str, AsyncHandler<C>>,
}

impl<C> Default for AsyncTable<C> {
    fn default() -> Self {
        Self {
            handlers: BTreeMap::new(),
        }
    }
}

impl<C: 'static> AsyncTable<C> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers a command.
    #[must_use]
    pub fn on<Q, F>(mut self, handle: impl Fn(Arc<C>, Q) -> F + Send + Sync + 'static) -> Self
    where
        Q: Command,
        F: Future<Output = Result<Q::Return, QmpError>> + 'static,
    {
        let fail = |e: serde_json::Error| QmpError::generic(format!("{}: {e}", Q::NAME));
        let handler = move |context: Arc<C>, arguments: Map<String, Value>| {
            let begun = Q::deserialize(Value::Object(arguments))
                .map_err(fail)
                .map(|command| handle(context, command));
            let answer = async move { serde_json::to_value(begun?.await?).map_err(fail) };
            Box::pin(answer) as Answer
        };
        self.handlers.insert(Q::NAME, Box::new(handler));
        self
    }

    /// The names of the commands, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.handlers.keys().copied()
    }

    /// Whether it has a command.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.handlers.contains_key(name)
    }

    /// Begins a command.
    ///
    /// # Errors
    /// There is no such command.
    pub fn begin(
        &self,
        context: &Arc<C>,
        name: &str,
        arguments: Map<String, Value>,
    ) -> Result<Answer, QmpError> {
        match self.handlers.get(name) {
            Some(handler) => Ok(handler(Arc::clone(context), arguments)),
            None => Err(QmpError::no_command(format!(
                "The command {name} has not been found"
            ))),
        }
    }
}
