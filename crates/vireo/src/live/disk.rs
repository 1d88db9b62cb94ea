//! What a machine says of its disks.

use std::path::Path;

use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::{Failure, Result};

/// A disk of a device, and the images that it consists of.
pub(super) struct Disk {
    /// The device.
    pub id: String,
    /// What `query-block` says of it.
    pub info: Value,
    /// What `query-named-block-nodes` says of its images, the active one first.
    pub chain: Vec<Value>,
}

/// A text of an answer; empty where there is none.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A number of an answer; 0 where there is none.
pub(super) fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

/// All disks of a machine.
pub(super) fn all(client: &mut Client) -> Result<Vec<Disk>> {
    let disks = client.call("query-block", None)?;
    let nodes = client.call("query-named-block-nodes", Some(json!({ "flat": true })))?;
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let disks = disks.as_array().cloned().unwrap_or_default();
    Ok(disks
        .into_iter()
        .map(|info| {
            let top = info.get("inserted").map(|top| text(top, "node-name"));
            Disk {
                id: text(&info, "device").to_owned(),
                chain: chain(&nodes, top.unwrap_or_default()),
                info,
            }
        })
        .collect())
}

/// One of them.
pub(super) fn one(client: &mut Client, id: &str) -> Result<Disk> {
    let disks = all(client)?;
    let ids: Vec<String> = disks.iter().map(|disk| disk.id.clone()).collect();
    disks.into_iter().find(|disk| disk.id == id).ok_or_else(|| {
        let near = spec::nearest(id, ids.iter().map(String::as_str));
        let advice = match near {
            Some(near) => format!("did you mean {near:?}?"),
            None if ids.is_empty() => "the machine has no disks".to_owned(),
            None => format!("there are {}", ids.join(", ")),
        };
        Failure::Failed(format!("there is no disk {id:?}: {advice}"))
    })
}

/// The images from one on to the last one below it.
fn chain(nodes: &[Value], top: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut name = top.to_owned();
    while let Some(node) = nodes.iter().find(|node| text(node, "node-name") == name) {
        found.push(node.clone());
        let child = |role: &str| {
            let children = node.get("children")?.as_array()?;
            let child = children.iter().find(|c| text(c, "child") == role)?;
            Some(text(child, "node-name").to_owned())
        };
        name = child("backing").unwrap_or_default();
        if found.len() > nodes.len() {
            break;
        }
    }
    found
}

impl Disk {
    /// The image that is written.
    pub(super) fn active(&self) -> Result<&Value> {
        self.chain
            .first()
            .ok_or_else(|| Failure::Failed(format!("disk {:?} has no image", self.id)))
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        let image = self.chain.first().and_then(|top| top.get("image"));
        image.map_or(0, |image| number(image, "virtual-size"))
    }

    /// The name of the image that is named by its node or by its file.
    pub(super) fn node(&self, given: &str) -> Result<String> {
        let by_name = self.chain.iter().find(|n| text(n, "node-name") == given);
        let found = by_name.or_else(|| self.chain.iter().find(|n| is_file(n, given)));
        match found {
            Some(node) => Ok(text(node, "node-name").to_owned()),
            None => {
                let names: Vec<_> = self.chain.iter().map(|n| text(n, "node-name")).collect();
                Err(Failure::Failed(format!(
                    "{given:?} is no image of disk {:?}: there are {}, from the active one down",
                    self.id,
                    names.join(", ")
                )))
            }
        }
    }

    /// The bitmaps of the active image.
    pub(super) fn bitmaps(&self) -> Vec<Value> {
        let top = self.chain.first();
        let bitmaps = top.and_then(|top| top.get("dirty-bitmaps")?.as_array().cloned());
        bitmaps.unwrap_or_default()
    }
}

fn is_file(node: &Value, given: &str) -> bool {
    let file = Path::new(text(node, "file"));
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    file == Path::new(given) || same(file, Path::new(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_followed_and_images_found_by_node_or_file() {
        let node = |name: &str, below: Option<&str>| {
            let children: Vec<Value> = below
                .iter()
                .map(|below| json!({"child": "backing", "node-name": below}))
                .collect();
            json!({"node-name": name, "file": format!("/d/{name}.qcow2"), "children": children})
        };
        let nodes = [node("b", None), node("m", Some("b")), node("t", Some("m"))];
        let disk = Disk {
            id: "disk0".into(),
            info: json!({}),
            chain: chain(&nodes, "t"),
        };
        assert_eq!(disk.chain.len(), 3);
        assert_eq!(disk.node("m").unwrap(), "m");
        assert_eq!(disk.node("/d/b.qcow2").unwrap(), "b");
        let Err(Failure::Failed(why)) = disk.node("x") else {
            panic!("there is no such image")
        };
        assert!(why.contains("t, m, b"), "{why}");
        // A chain that leads back to itself has an end.
        let nodes = [node("a", Some("a"))];
        assert!(chain(&nodes, "a").len() <= 2);
    }
}
