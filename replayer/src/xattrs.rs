//! Extended attributes and access control lists of names in a [`Tree`], never through a symbolic link.

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use crate::tree::Tree;

/// Where the owner is kept that a mirror could not take, under the policy `record`.
pub const OWNER: &[u8] = b"user.lockstep.owner";

/// True for an access control list.
pub fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

/// True for attributes that belong to the machine or to us rather than to the tree; they are neither copied nor
/// compared.
pub fn is_local(name: &[u8]) -> bool {
    matches!(name, b"security.selinux" | b"security.ima" | b"security.evm" | b"security.apparmor" | OWNER)
}

/// The names of the extended attributes of `path`, sorted, without those that are local.
///
/// # Errors
/// Those of the path and of llistxattr(2); a file system without such attributes has none.
pub fn names(tree: &mut Tree, path: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (_directory, through) = tree.proc_path(path)?;
    let mut small = [0u8; 512];
    let large;
    let list: &[u8] = match rustix::fs::llistxattr(&through, &mut small[..]) {
        Ok(bytes) => &small[..bytes],
        Err(Errno::RANGE) => {
            large = grown(|buffer| rustix::fs::llistxattr(&through, buffer))?;
            &large
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !is_local(name));
    let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    names.sort_unstable();
    Ok(names)
}

/// The value of an extended attribute of `path`; nothing if there is none of that name.
///
/// # Errors
/// Those of the path and of lgetxattr(2).
pub fn get(tree: &mut Tree, path: &[u8], name: &[u8]) -> Result<Option<Vec<u8>>> {
    let (_directory, through) = tree.proc_path(path)?;
    match grown(|buffer| rustix::fs::lgetxattr(&through, name, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets an extended attribute of `path`.
///
/// # Errors
/// Those of the path and of lsetxattr(2).
pub fn set(tree: &mut Tree, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
    let (_directory, through) = tree.proc_path(path)?;
    rustix::fs::lsetxattr(&through, name, value, XattrFlags::empty())
}

/// Removes an extended attribute of `path`; that it is not there is fine.
///
/// # Errors
/// Those of the path and of lremovexattr(2).
pub fn remove(tree: &mut Tree, path: &[u8], name: &[u8]) -> Result<()> {
    let (_directory, through) = tree.proc_path(path)?;
    match rustix::fs::lremovexattr(&through, name) {
        Err(Errno::NODATA) => Ok(()),
        result => result,
    }
}

fn grown(mut read: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(bytes) => {
                buffer.truncate(bytes);
                return Ok(buffer);
            }
            // The kernel's own limit is 64 KiB for a value and for a list.
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 8, 0),
            Err(errno) => return Err(errno),
        }
    }
}
