//! Limits: groups by name, and the filters that belong to them.

use std::sync::Arc;

use block::throttle::{Throttle, ThrottleGroup, ThrottleLimits};
use qmp::{Empty, QmpError};
use serde_json::Value;

use crate::objects::Properties;
use crate::qapi::block::{BlockSetIoThrottle, QomGet, QomSet};
use crate::{Blockdev, BlockdevError, lock};

/// What an object's path ends with.
fn id(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn wrong(error: impl std::fmt::Display) -> BlockdevError {
    BlockdevError::Options(error.to_string())
}

fn limits(value: Value) -> Result<ThrottleLimits, BlockdevError> {
    let limits: ThrottleLimits = serde_json::from_value(value).map_err(wrong)?;
    limits.check().map_err(wrong)?;
    Ok(limits)
}

impl Blockdev {
    /// The group of that name.
    pub(crate) fn throttle_group(&self, name: &str) -> Result<Arc<ThrottleGroup>, BlockdevError> {
        let found = lock(&self.groups).get(name).cloned();
        found.ok_or_else(|| {
            BlockdevError::Options(format!(
                "there is no throttle group '{name}': make it with object-add"
            ))
        })
    }

    fn group_or_new(&self, name: &str) -> Result<Arc<ThrottleGroup>, BlockdevError> {
        let mut groups = lock(&self.groups);
        if let Some(group) = groups.get(name) {
            return Ok(Arc::clone(group));
        }
        let group = ThrottleGroup::new(name, &ThrottleLimits::default()).map_err(wrong)?;
        groups.insert(name.to_owned(), Arc::clone(&group));
        Ok(group)
    }

    /// Makes a group.
    pub(crate) fn add_group(&self, id: &str, properties: &Properties) -> Result<(), BlockdevError> {
        let given = properties.get("limits").cloned();
        let limits = limits(given.unwrap_or_else(|| Value::Object(serde_json::Map::new())))?;
        let group = ThrottleGroup::new(id, &limits).map_err(wrong)?;
        lock(&self.groups).insert(id.to_owned(), group);
        Ok(())
    }

    /// Whether a disk or a node is in the group.
    pub(crate) fn is_group_used(&self, id: &str) -> bool {
        let throttles = self.graph().throttles();
        throttles.iter().any(|t| t.group().name() == id)
    }

    pub(crate) async fn qom_set(&self, command: QomSet) -> Result<Empty, QmpError> {
        let group = self.throttle_group(id(&command.path))?;
        if command.property != "limits" {
            let text = format!("Property '{}' not found: there is limits", command.property);
            return Err(QmpError::generic(text));
        }
        group.set_limits(&limits(command.value)?).map_err(wrong)?;
        Ok(Empty {})
    }

    pub(crate) async fn qom_get(&self, command: QomGet) -> Result<Value, QmpError> {
        let group = self.throttle_group(id(&command.path))?;
        match command.property.as_str() {
            "limits" => serde_json::to_value(group.limits())
                .map_err(|error| QmpError::generic(error.to_string())),
            other => Err(QmpError::generic(format!(
                "Property '{other}' not found: there is limits"
            ))),
        }
    }

    /// Puts a filter into another group.
    pub(crate) fn move_to_group(
        &self,
        throttle: &Throttle,
        group: &str,
    ) -> Result<(), BlockdevError> {
        throttle.set_group(self.throttle_group(group)?);
        Ok(())
    }

    pub(crate) async fn set_io_throttle(
        &self,
        command: BlockSetIoThrottle,
    ) -> Result<Empty, QmpError> {
        let given = command.0;
        let name = given.device.as_deref().or(given.id.as_deref());
        let name = name.ok_or_else(|| QmpError::generic("Need 'device' or 'id'"))?;
        let limits = ThrottleLimits::from(&given);
        limits.check().map_err(wrong)?;
        let device = {
            let devices = lock(&self.devices);
            // By name, or by its place in the tree of objects.
            let mut all = devices.iter();
            let found = all.find(|(id, device)| id.as_str() == name || device.qdev() == name);
            found.map(|(_, device)| Arc::clone(device))
        };
        let device = device.ok_or_else(|| BlockdevError::NoDevice(name.to_owned()))?;
        let throttle = device.throttle();
        let group = match &given.group {
            None => throttle.group(),
            Some(group) => self.group_or_new(group)?,
        };
        group.set_limits(&limits).map_err(wrong)?;
        if !Arc::ptr_eq(&group, &throttle.group()) {
            throttle.set_group(group);
        }
        Ok(Empty {})
    }
}
