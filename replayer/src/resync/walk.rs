//! `Walk`: goes over a tree one object at a time, so that others get a turn.

use rustix::io::Errno;

use super::level::{Copying, Leveled, Leveling};
use crate::apply::Applier;
use crate::error::{ReplayError, in_primary};
use crate::paths;

/// A walk over a tree, one object at a time.
#[derive(Debug)]
pub struct Walk {
    frames: Vec<Frame>,
    copying: Option<Box<Copying>>,
}

#[derive(Debug)]
struct Frame {
    path: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
}

impl Walk {
    /// Begins at `path`; nothing if the primary has nothing there.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn start(applier: &mut Applier, path: &[u8], leveling: &mut Leveling) -> Result<Option<Self>, ReplayError> {
        let in_primary = applier.primary.look(path).map_err(in_primary("stat", path));
        match in_primary {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(error) if error.errno() == Some(Errno::ACCESS) => {
                leveling.unreadable.push((path.to_vec(), Errno::ACCESS));
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        applier.level_parents(path)?;
        let mut walk = Self { frames: Vec::new(), copying: None };
        walk.visit(applier, path, leveling)?;
        Ok(Some(walk))
    }

    /// Does one more object or a stretch of a large one; false when there is none.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn advance(&mut self, applier: &mut Applier, leveling: &mut Leveling) -> Result<bool, ReplayError> {
        if let Some(mut copying) = self.copying.take() {
            if applier.copy_stretch(&mut copying, leveling)? {
                applier.level_attributes(&copying.path, &copying.stat, copying.is_new, copying.flags, leveling)?;
            } else {
                self.copying = Some(copying);
            }
            return Ok(true);
        }
        let Some(frame) = self.frames.last_mut() else { return Ok(false) };
        if let Some(name) = frame.names.next() {
            let path = paths::join(&frame.path, &name);
            self.visit(applier, &path, leveling)?;
            return Ok(true);
        }
        if let Some(frame) = self.frames.pop() {
            // Its times come last, because what was done below it changed them.
            match applier.primary.look(&frame.path) {
                Ok(Some(stat)) => applier.level_directory_attributes(&frame.path, &stat, leveling)?,
                Ok(None) | Err(Errno::ACCESS) => {}
                Err(errno) => return Err(in_primary("stat", &frame.path)(errno)),
            }
        }
        Ok(true)
    }

    fn visit(&mut self, applier: &mut Applier, path: &[u8], leveling: &mut Leveling) -> Result<(), ReplayError> {
        match applier.level_object(path, leveling)? {
            Leveled::Done => {}
            Leveled::Large(copying) => self.copying = Some(copying),
            Leveled::Directory(_) => {
                let names = applier.level_list(path, leveling)?;
                self.frames.push(Frame { path: path.to_vec(), names: names.into_iter() });
            }
        }
        Ok(())
    }
}
