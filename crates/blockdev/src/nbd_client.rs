//! Disks of other machines, by NBD.

use std::path::PathBuf;
use std::time::Duration;

use block::storage::AnyStorage;
use event::IoThread;
use nbd::{Address, Client, ClientOptions, Uri};
use serde_json::{Map, Value};

use crate::BlockdevError;
use crate::options::NodeOptions;

/// Reads an address (SocketAddress, or SocketAddressLegacy with its `data`).
pub(crate) fn address(given: &Map<String, Value>) -> Result<Address, BlockdevError> {
    let fields = match given.get("data") {
        Some(Value::Object(data)) => data,
        _ => given,
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let missing = |name: &str| BlockdevError::Options(format!("Parameter '{name}' is missing"));
    match given.get("type").and_then(Value::as_str) {
        Some("unix") => {
            let path = text("path").ok_or_else(|| missing("path"))?;
            Ok(Address::Unix(PathBuf::from(path)))
        }
        Some("inet") => {
            let host = text("host").ok_or_else(|| missing("host"))?.to_owned();
            let port = match fields.get("port") {
                Some(Value::String(port)) => port.parse().ok(),
                Some(port) => port.as_u64().and_then(|port| u16::try_from(port).ok()),
                None => return Err(missing("port")),
            };
            let port = port.ok_or_else(|| {
                BlockdevError::Options("Parameter 'port' expects a number up to 65535".to_owned())
            })?;
            Ok(Address::Tcp { host, port })
        }
        other => Err(BlockdevError::Options(format!(
            "Parameter 'type' is {other:?}: there are unix and inet"
        ))),
    }
}

/// Connects.
pub(crate) async fn open(options: &NodeOptions) -> Result<AnyStorage, BlockdevError> {
    let server = options.server.as_ref();
    let server =
        server.ok_or_else(|| BlockdevError::Options("Parameter 'server' is missing".to_owned()))?;
    let seconds = |value: Option<u32>| Duration::from_secs(value.unwrap_or(0).into());
    let wanted = ClientOptions {
        export: options.export.clone().unwrap_or_default(),
        read_only: options.read_only.unwrap_or(false),
        reconnect_delay: seconds(options.reconnect_delay),
        open_timeout: seconds(options.open_timeout),
        ..ClientOptions::new(address(server)?)
    };
    connect(wanted).await
}

/// How long requests wait for a server that is lost, when a disk is named by a URI.
const RECONNECT: Duration = Duration::from_secs(10);

/// Connects to what a URI names.
pub(crate) async fn open_uri(uri: &str, read_only: bool) -> Result<AnyStorage, BlockdevError> {
    let failed = |error: nbd::NbdError| BlockdevError::Options(chain(&error));
    let uri: Uri = uri.parse().map_err(failed)?;
    let wanted = ClientOptions {
        read_only,
        reconnect_delay: RECONNECT,
        ..ClientOptions::of_uri(uri, None).map_err(failed)?
    };
    connect(wanted).await
}

async fn connect(wanted: ClientOptions) -> Result<AnyStorage, BlockdevError> {
    let thread = IoThread::current().ok_or_else(|| {
        BlockdevError::Refused("connections are made on an I/O thread".to_owned())
    })?;
    let client = Client::open(wanted, &thread).await;
    let failed = |error: &dyn std::error::Error| BlockdevError::Refused(chain(error));
    match client {
        Ok(Ok(client)) => Ok(AnyStorage::other(client)),
        Ok(Err(error)) => Err(failed(&error)),
        Err(gone) => Err(failed(&gone)),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
