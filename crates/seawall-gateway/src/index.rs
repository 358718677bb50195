//! Which routes are worth a look: by the host that they name, and by the segments with which their paths begin. What it gives is
//! always a part of the table in the table's order, and all that can match is in it; so the first that matches is the same as
//! without it.

use std::collections::HashMap;

use crate::matcher::{Host, Matcher};

/// How many segments are looked at. What says more is found by the first of them.
const DEPTH: usize = 15;
/// The lists that a lookup finds: of each segment and of the root, for one host and for all.
const LISTS: usize = 2 * (DEPTH + 1);

/// An index of matchers by their places in a table.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Those that name one host alone, by it.
    hosts: HashMap<Box<str>, Node>,
    /// All others.
    any: Node,
}

#[derive(Debug, Default)]
struct Node {
    /// Those whose path goes on with anything, or ends, here. Ascending.
    here: Vec<u32>,
    next: HashMap<Box<str>, Node>,
}

impl Node {
    fn insert(&mut self, matcher: &Matcher, place: u32) {
        let mut node = self;
        for literal in matcher.path.iter().flat_map(|path| path.literals()).take(DEPTH) {
            node = node.next.entry(literal.into()).or_default();
        }
        node.here.push(place);
    }

    /// The lists of all nodes on the way.
    fn find<'a>(&'a self, path: &str, found: &mut Candidates<'a>) {
        let mut node = self;
        found.add(&node.here);
        for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
            let Some(next) = node.next.get(segment) else { return };
            found.add(&next.here);
            node = next;
        }
    }
}

impl Index {
    /// Of matchers in their order.
    pub(crate) fn new<'a>(matchers: impl IntoIterator<Item = &'a Matcher>) -> Self {
        let mut index = Self::default();
        for (place, matcher) in matchers.into_iter().enumerate() {
            let place = u32::try_from(place).expect("fewer routes than fit into memory");
            match names(matcher) {
                Some(names) => {
                    names
                        .into_iter()
                        .for_each(|name| index.hosts.entry(name.into()).or_default().insert(matcher, place));
                }
                None => index.any.insert(matcher, place),
            }
        }
        index
    }

    /// Those that may take every request that this one does, ascending; itself among them.
    pub(crate) fn around(&self, matcher: &Matcher) -> Candidates<'_> {
        let host = names(matcher).and_then(|names| names.into_iter().next());
        let literals = matcher.path.iter().flat_map(|path| path.literals());
        let path: String = literals.flat_map(|literal| ["/", literal]).collect();
        self.candidates(host, &path)
    }

    /// Whether any of them asks for the host alone, so that it has to be known.
    pub(crate) fn knows_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// Those that may match, ascending.
    pub(crate) fn candidates(&self, host: Option<&str>, path: &str) -> Candidates<'_> {
        let mut found = Candidates { lists: [&[]; LISTS], count: 0 };
        if let Some(node) = host.and_then(|host| self.hosts.get(host)) {
            node.find(path, &mut found);
        }
        self.any.find(path, &mut found);
        found
    }
}

/// The hosts that a matcher names, if it takes no others. Two that are the same are one.
fn names(matcher: &Matcher) -> Option<Vec<&str>> {
    fn name(host: &Host) -> Option<&str> {
        if let Host::Exact(name) = host { Some(name) } else { None }
    }
    let mut names: Vec<&str> = matcher.hosts.iter().map(name).collect::<Option<_>>()?;
    names.sort_unstable();
    names.dedup();
    Some(names).filter(|names| !names.is_empty())
}

/// Several ascending lists, merged as they are read.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    lists: [&'a [u32]; LISTS],
    count: usize,
}

impl<'a> Candidates<'a> {
    fn add(&mut self, list: &'a [u32]) {
        if !list.is_empty() {
            self.lists[self.count] = list;
            self.count += 1;
        }
    }
}

impl Iterator for Candidates<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let lists = self.lists[..self.count].iter_mut().filter(|list| !list.is_empty());
        let least = lists.min_by_key(|list| list[0])?;
        let (first, rest) = least.split_first()?;
        *least = rest;
        Some(*first as usize)
    }
}
