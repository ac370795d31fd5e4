//! Relative paths as bytes, and sets that are keyed by them and follow renames of directories.

use std::collections::BTreeMap;
use std::ops::Bound;

/// The one name at a mirror's root that is ours.
pub const RESERVED: &[u8] = b".lockstep";

/// True for `.lockstep` at the root and everything below it.
pub fn is_reserved(path: &[u8]) -> bool {
    path.strip_prefix(RESERVED).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The directory of a path and its last name. The root has no name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The directory of a path; the root's is the root.
pub fn parent(path: &[u8]) -> &[u8] {
    split(path).0
}

/// `name` in `directory`.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

/// True when `path` is `top` or lies below it.
pub fn is_within(path: &[u8], top: &[u8]) -> bool {
    top.is_empty() || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The directories from the root (left out) down to `path` itself.
pub fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let all = ends.chain((!path.is_empty()).then_some(path.len()));
    all.map(|end| &path[..end])
}

/// A map from paths, in which whole directories move.
#[derive(Debug, Clone)]
pub struct PathMap<V>(BTreeMap<Vec<u8>, V>);

impl<V> Default for PathMap<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V> PathMap<V> {
    /// What is kept for `path`.
    pub fn get(&self, path: &[u8]) -> Option<&V> {
        self.0.get(path)
    }

    /// Keeps `value` for `path`; what was kept before comes back.
    pub fn insert(&mut self, path: &[u8], value: V) -> Option<V> {
        if let Some(place) = self.0.get_mut(path) {
            return Some(std::mem::replace(place, value));
        }
        self.0.insert(path.to_vec(), value)
    }

    /// Removes `path` alone.
    pub fn remove(&mut self, path: &[u8]) -> Option<V> {
        self.0.remove(path)
    }

    /// Removes `path` and everything below it; what comes back has the rest of the path after `path`.
    pub fn take_tree(&mut self, path: &[u8]) -> Vec<(Vec<u8>, V)> {
        let mut taken = Vec::new();
        if self.0.is_empty() {
            return taken;
        }
        if path.is_empty() {
            return std::mem::take(&mut self.0).into_iter().collect();
        }
        if let Some(value) = self.0.remove(path) {
            taken.push((Vec::new(), value));
        }
        let below: Vec<Vec<u8>> = self.below(path).map(|(key, _)| key.to_vec()).collect();
        for key in below {
            if let Some(value) = self.0.remove(&key) {
                taken.push((key[path.len()..].to_vec(), value));
            }
        }
        taken
    }

    /// Puts back what [`Self::take_tree`] gave, at another path.
    pub fn put_tree(&mut self, path: &[u8], taken: Vec<(Vec<u8>, V)>) {
        for (rest, value) in taken {
            self.0.insert([path, &rest[..]].concat(), value);
        }
    }

    /// `old` and everything below becomes `new`; what was at `new` is dropped.
    pub fn rename(&mut self, old: &[u8], new: &[u8]) {
        if self.0.is_empty() {
            return;
        }
        self.take_tree(new);
        let moved = self.take_tree(old);
        self.put_tree(new, moved);
    }

    /// `a` and `b`, with everything below each, change places.
    pub fn exchange(&mut self, a: &[u8], b: &[u8]) {
        let (from_a, from_b) = (self.take_tree(a), self.take_tree(b));
        self.put_tree(b, from_a);
        self.put_tree(a, from_b);
    }

    /// True when something is kept for `path` or below it.
    pub fn has_within(&self, path: &[u8]) -> bool {
        self.0.contains_key(path) || self.below(path).next().is_some()
    }

    /// Everything kept strictly below `path`.
    pub fn below(&self, path: &[u8]) -> impl Iterator<Item = (&[u8], &V)> {
        let (from, to) = if path.is_empty() {
            (Bound::Excluded(Vec::new()), Bound::Unbounded)
        } else {
            // '0' is the byte after '/'.
            (Bound::Included([path, b"/"].concat()), Bound::Excluded([path, b"0"].concat()))
        };
        self.0.range((from, to)).map(|(key, value)| (&key[..], value))
    }

    /// All of it, in the order of the bytes.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &V)> {
        self.0.iter().map(|(key, value)| (&key[..], value))
    }

    /// Takes out the first.
    pub fn pop_first(&mut self) -> Option<(Vec<u8>, V)> {
        self.0.pop_first()
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_and_join() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
        assert_eq!(join(b"", b"c"), b"c");
        assert_eq!(join(b"a", b"c"), b"a/c");
        assert_eq!(ancestors(b"a/b/c").collect::<Vec<_>>(), [&b"a"[..], b"a/b", b"a/b/c"]);
        assert_eq!(ancestors(b"").count(), 0);
    }

    #[test]
    fn only_our_name_at_the_root_is_reserved() {
        assert!(is_reserved(b".lockstep") && is_reserved(b".lockstep/x"));
        assert!(!is_reserved(b".lockstep2") && !is_reserved(b"a/.lockstep") && !is_reserved(b""));
    }

    #[test]
    fn a_directory_moves_with_what_is_below_and_nothing_beside() {
        let mut map = PathMap::default();
        for (at, path) in [&b"d"[..], b"d/x", b"d/x/y", b"d.z", b"d0", b"e/old"].iter().enumerate() {
            map.insert(path, at);
        }
        map.rename(b"d", b"e");
        let now: Vec<_> = map.iter().map(|(path, at)| (path.to_vec(), *at)).collect();
        let expected: Vec<(Vec<u8>, usize)> = vec![
            (b"d.z".to_vec(), 3),
            (b"d0".to_vec(), 4),
            (b"e".to_vec(), 0),
            (b"e/x".to_vec(), 1),
            (b"e/x/y".to_vec(), 2),
        ];
        assert_eq!(now, expected);
        map.exchange(b"e", b"d0");
        assert_eq!(map.get(b"d0/x/y"), Some(&2));
        assert_eq!(map.get(b"e"), Some(&4));
    }
}
