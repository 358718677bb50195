//! What becomes of a part's answer, and where it goes; which parts would get in one another's way. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::config::PartConfig;
use super::template::Field;

/// What is taken of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shape {
    from: Option<Field>,
    pick: Vec<Field>,
    omit: Vec<Field>,
    rename: Vec<(Field, String)>,
}

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere.
    Hidden,
    At(Vec<String>),
    /// The fields that may come, for all that is known at load.
    Merge(Vec<String>, Fields),
    Append(Vec<String>),
}

/// Which fields an object may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fields {
    Only(BTreeSet<String>),
    AllBut(BTreeSet<String>),
}

impl Shape {
    /// Says what is wrong by field.
    pub(crate) fn try_new(config: &PartConfig, problem: &mut impl FnMut(&str, String)) -> Self {
        let mut fields = |key: &str, texts: &[String]| -> Vec<Field> {
            let read = |text: &String| Field::try_new(text).map_err(|why| problem(key, why)).ok();
            texts.iter().filter_map(read).collect()
        };
        let (pick, omit) = (fields("pick", &config.pick), fields("omit", &config.omit));
        let from = fields("from", config.from.as_slice()).pop();
        let olds: Vec<String> = config.rename.keys().cloned().collect();
        let olds = fields("rename", &olds);
        let rename: Vec<_> = olds.into_iter().zip(config.rename.values().cloned()).collect();
        for (old, new) in &rename {
            if new.is_empty() || new.contains('.') {
                problem(
                    "rename",
                    format!("`{old}` is renamed to `{new}`: a new name is one word, and stays at its level"),
                );
            }
            let level = &old.segments()[..old.segments().len() - 1];
            let other = |(other, name): &&(Field, String)| {
                other != old && name == new && &other.segments()[..other.segments().len() - 1] == level
            };
            let kept = pick.iter().any(|kept| {
                let segments = kept.segments();
                segments.len() > level.len() && segments.starts_with(level) && segments[level.len()] == *new
            });
            let leaves = rename.iter().any(|(other, _)| {
                other.segments().len() == level.len() + 1
                    && other.segments().starts_with(level)
                    && other.segments()[level.len()] == *new
            });
            if rename.iter().find(other).is_some() || (kept && !leaves) {
                problem("rename", format!("`{old}` is renamed to `{new}`, which another field is called too"));
            }
        }
        Self { from, pick, omit, rename }
    }

    /// The answer as it is to be.
    ///
    /// # Errors
    /// It does not have what counts.
    pub(crate) fn of(&self, answer: &Value) -> Result<Value, String> {
        let mut value = match &self.from {
            None => answer.clone(),
            Some(from) => from.of(answer).ok_or_else(|| format!("its answer has no `{from}`"))?.into_owned(),
        };
        if !self.pick.is_empty() {
            let ways: Vec<&[String]> = self.pick.iter().map(Field::segments).collect();
            value = pick(value, &ways);
        }
        for way in &self.omit {
            omit(&mut value, way.segments());
        }
        // All at once, so that two fields may change places.
        rename(&mut value, &self.rename.iter().map(|(old, new)| (old.segments(), &**new)).collect::<Vec<_>>());
        Ok(value)
    }

    /// The fields that the answer may have at its top.
    fn fields(&self) -> Fields {
        let top = |field: &Field| (field.segments().len() == 1).then(|| field.segments()[0].clone());
        let omitted = self.omit.iter().filter_map(top);
        let renamed = self.rename.iter().filter_map(|(old, new)| Some((top(old)?, new.clone())));
        if self.pick.is_empty() {
            let mut except: BTreeSet<String> = omitted.chain(renamed.clone().map(|(old, _)| old)).collect();
            for (_, new) in renamed {
                except.remove(&new);
            }
            return Fields::AllBut(except);
        }
        let mut only: BTreeSet<String> = self.pick.iter().map(|field| field.segments()[0].clone()).collect();
        for name in omitted {
            only.remove(&name);
        }
        let (olds, news): (BTreeSet<_>, BTreeSet<_>) = renamed.filter(|(old, _)| only.contains(old)).unzip();
        only.retain(|name| !olds.contains(name));
        only.extend(news);
        Fields::Only(only)
    }
}

/// Lists are looked into, element by element.
fn pick(value: Value, ways: &[&[String]]) -> Value {
    match value {
        Value::Array(list) => Value::Array(list.into_iter().map(|element| pick(element, ways)).collect()),
        Value::Object(map) => {
            let kept = map.into_iter().filter_map(|(key, value)| {
                let below: Vec<&[String]> = ways.iter().filter(|way| way[0] == key).map(|way| &way[1..]).collect();
                if below.is_empty() {
                    return None;
                }
                let whole = below.iter().any(|way| way.is_empty());
                Some((key, if whole { value } else { pick(value, &below) }))
            });
            Value::Object(kept.collect())
        }
        other => other,
    }
}

fn omit(value: &mut Value, way: &[String]) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|element| omit(element, way)),
        Value::Object(map) => match way {
            [last] => drop(map.remove(last)),
            [first, rest @ ..] => {
                if let Some(value) = map.get_mut(first) {
                    omit(value, rest);
                }
            }
            [] => {}
        },
        _ => {}
    }
}

fn rename(value: &mut Value, names: &[(&[String], &str)]) {
    if names.is_empty() {
        return;
    }
    match value {
        Value::Array(list) => list.iter_mut().for_each(|element| rename(element, names)),
        Value::Object(map) => {
            let mut renamed = Vec::new();
            for (way, new) in names.iter().filter(|(way, _)| way.len() == 1) {
                renamed.extend(map.remove(&way[0]).map(|value| (way[0].clone(), (*new).to_owned(), value)));
            }
            let below = |key: &str| -> Vec<(&[String], &str)> {
                let deeper = names.iter().filter(|(way, _)| way.len() > 1 && way[0] == key);
                deeper.map(|(way, new)| (&way[1..], *new)).collect()
            };
            for (key, value) in map.iter_mut() {
                rename(value, &below(key));
            }
            for (old, new, mut value) in renamed {
                rename(&mut value, &below(&old));
                map.insert(new, value);
            }
        }
        _ => {}
    }
}

impl Place {
    pub(crate) fn try_new(config: &PartConfig, shape: &Shape, problem: &mut impl FnMut(&str, String)) -> Self {
        let given = [
            ("at", config.at.is_some()),
            ("merge", config.merge.is_some()),
            ("append", config.append.is_some()),
            ("hidden", config.hidden),
        ];
        let given: Vec<_> = given.iter().filter(|(_, is)| *is).map(|(key, _)| *key).collect();
        if given.len() > 1 {
            problem(given[1], format!("`{}` and `{}` both say where it goes: leave one out", given[0], given[1]));
        }
        let mut way = |key: &str, text: &str| match Field::try_new(text) {
            Ok(field) => field.segments().to_vec(),
            Err(why) => {
                problem(key, why);
                vec![config.name.clone()]
            }
        };
        match (&config.at, &config.merge, &config.append, config.hidden) {
            (Some(at), ..) => Self::At(way("at", at)),
            (_, Some(merge), ..) if merge == "." => Self::Merge(Vec::new(), shape.fields()),
            (_, Some(merge), ..) => Self::Merge(way("merge", merge), shape.fields()),
            (_, _, Some(append), _) => Self::Append(way("append", append)),
            (.., true) => Self::Hidden,
            (None, None, None, false) => Self::At(vec![config.name.clone()]),
        }
    }

    /// Why the two cannot both have their place; nothing when they can, whatever comes.
    pub(crate) fn collides(&self, other: &Self) -> Option<String> {
        let shown =
            |way: &[String]| if way.is_empty() { "the answer".to_owned() } else { format!("`{}`", way.join(".")) };
        match (self, other) {
            (Self::Hidden, _) | (_, Self::Hidden) => None,
            (Self::Append(mine), Self::Append(theirs)) if mine == theirs => None,
            (Self::Merge(mine, fields), Self::Merge(theirs, others)) if mine == theirs => {
                let why = fields.meet(others)?;
                Some(format!("both put {why} into {}", shown(mine)))
            }
            (Self::Merge(mine, fields), other) if other.way().len() > mine.len() && other.way().starts_with(mine) => {
                let next = &other.way()[mine.len()];
                fields
                    .may_have(next)
                    .then(|| format!("one may put a field `{next}` into {}, where the other puts its own", shown(mine)))
            }
            (_, Self::Merge(theirs, _)) if self.way().len() > theirs.len() && self.way().starts_with(theirs) => {
                other.collides(self)
            }
            _ if self.way().starts_with(other.way()) => Some(format!("the other's is {}", shown(other.way()))),
            _ if other.way().starts_with(self.way()) => Some(format!("its own is {}", shown(self.way()))),
            _ => None,
        }
    }

    fn way(&self) -> &[String] {
        match self {
            Self::Hidden => &[],
            Self::At(way) | Self::Merge(way, _) | Self::Append(way) => way,
        }
    }

    /// Whether a part's answer can go there.
    ///
    /// # Errors
    /// It is not of the kind that goes there.
    pub(crate) fn fits(&self, value: &Value) -> Result<(), String> {
        match self {
            Self::Merge(..) if !value.is_object() => {
                Err("its answer is no object, so that it has no fields to merge".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Puts a part's answer, which fits, in its place.
    pub(crate) fn put(&self, value: Value, answer: &mut Map<String, Value>) {
        match self {
            Self::Hidden => {}
            Self::At(way) => {
                if let Some((last, front)) = way.split_last() {
                    object(answer, front).insert(last.clone(), value);
                }
            }
            Self::Merge(way, _) => {
                if let Value::Object(fields) = value {
                    object(answer, way).extend(fields);
                }
            }
            Self::Append(way) => {
                if let Some((last, front)) = way.split_last()
                    && let Value::Array(list) =
                        object(answer, front).entry(last.clone()).or_insert_with(|| Value::Array(Vec::new()))
                {
                    match value {
                        Value::Array(elements) => list.extend(elements),
                        Value::Null => {}
                        element => list.push(element),
                    }
                }
            }
        }
    }

    /// The list that is there, empty, even if every part of it fails.
    pub(crate) fn prepare(&self, answer: &mut Map<String, Value>) {
        if matches!(self, Self::Append(_)) {
            // An empty list is appended to whatever there is.
            self.put(Value::Array(Vec::new()), answer);
        }
    }
}

/// The object at `way`, made if it is not there. What is in its way can be nothing: collisions are found at load.
fn object<'a>(mut map: &'a mut Map<String, Value>, way: &[String]) -> &'a mut Map<String, Value> {
    for segment in way {
        let value = map.entry(segment.clone()).or_insert(Value::Null);
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        let Value::Object(next) = value else { unreachable!("it has just been made one") };
        map = next;
    }
    map
}

impl Fields {
    fn may_have(&self, name: &str) -> bool {
        match self {
            Self::Only(names) => names.contains(name),
            Self::AllBut(names) => !names.contains(name),
        }
    }

    /// A field that both may have.
    fn meet(&self, other: &Self) -> Option<String> {
        match (self, other) {
            (Self::Only(names), any) | (any, Self::Only(names)) => {
                names.iter().find(|name| any.may_have(name)).map(|name| format!("a field `{name}`"))
            }
            (Self::AllBut(_), Self::AllBut(_)) => Some("any fields (let one of them `pick`)".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn part(mut config: Value) -> PartConfig {
        config["name"] = config.get("name").cloned().unwrap_or(json!("a"));
        config["call"] = json!("GET a/b");
        serde_json::from_value(config).unwrap()
    }

    fn shape(config: Value) -> Result<Shape, String> {
        let mut problems = Vec::new();
        let shape = Shape::try_new(&part(config), &mut |field, what| problems.push(format!("{field}: {what}")));
        if problems.is_empty() { Ok(shape) } else { Err(problems.join("; ")) }
    }

    #[test]
    fn answers_are_shaped() {
        let answer =
            json!({ "data": [{ "id": 1, "who": { "name": "a", "age": 2 }, "x": 0 }, { "id": 2 }], "a": 1, "b": 2 });
        for (config, shaped) in [
            (json!({}), Ok(answer.clone())),
            (json!({ "from": "data.0.who" }), Ok(json!({ "name": "a", "age": 2 }))),
            (json!({ "from": "data.*.id" }), Ok(json!([1, 2]))),
            (json!({ "from": "nothing" }), Err("no `nothing`")),
            (
                json!({ "from": "data", "pick": ["id", "who.name"] }),
                Ok(json!([{ "id": 1, "who": { "name": "a" } }, { "id": 2 }])),
            ),
            (json!({ "pick": ["a", "none"] }), Ok(json!({ "a": 1 }))),
            (
                json!({ "from": "data", "omit": ["who.age", "x"] }),
                Ok(json!([{ "id": 1, "who": { "name": "a" } }, { "id": 2 }])),
            ),
            (json!({ "omit": ["data"], "rename": { "a": "b", "b": "a" } }), Ok(json!({ "a": 2, "b": 1 }))),
            (
                json!({ "pick": ["data.who"], "rename": { "data": "list", "data.who.name": "called" } }),
                Ok(json!({ "list": [{ "who": { "called": "a", "age": 2 } }, {}] })),
            ),
        ] {
            match (shape(config.clone()).unwrap().of(&answer), shaped) {
                (Ok(value), Ok(shaped)) => assert_eq!(value, shaped, "{config}"),
                (Err(why), Err(says)) => assert!(why.contains(says), "{config}: {why}"),
                (value, _) => panic!("{config}: {value:?}"),
            }
        }
        for (config, says) in [
            (json!({ "pick": ["a..b"] }), "pick: `a..b` is not a field"),
            (json!({ "rename": { "a": "b.c" } }), "rename: `a` is renamed to `b.c`"),
            (json!({ "rename": { "a": "c", "b": "c" } }), "another field is called too"),
            (json!({ "pick": ["a", "b"], "rename": { "a": "b" } }), "another field is called too"),
        ] {
            let error = shape(config.clone()).unwrap_err();
            assert!(error.contains(says), "{config}: {error}");
        }
    }

    #[test]
    fn places_that_may_meet_are_found() {
        let place = |config: Value| {
            let config = part(config);
            let mut wrong = |field: &str, what: String| panic!("{field}: {what}");
            let shape = Shape::try_new(&config, &mut wrong);
            Place::try_new(&config, &shape, &mut wrong)
        };
        for (one, other, meet) in [
            (json!({ "at": "a" }), json!({ "at": "b" }), false),
            (json!({ "at": "a" }), json!({ "at": "a" }), true),
            (json!({ "at": "a" }), json!({ "at": "a.b" }), true),
            (json!({ "at": "a.c" }), json!({ "at": "a.b" }), false),
            (json!({ "name": "x" }), json!({ "at": "x" }), true),
            (json!({ "hidden": true, "name": "x" }), json!({ "at": "x" }), false),
            (json!({ "append": "l" }), json!({ "append": "l" }), false),
            (json!({ "append": "l" }), json!({ "at": "l" }), true),
            (json!({ "merge": "." }), json!({ "at": "a" }), true),
            (json!({ "merge": ".", "omit": ["a"] }), json!({ "at": "a.b" }), false),
            (json!({ "merge": ".", "pick": ["b.c"] }), json!({ "at": "a" }), false),
            (json!({ "merge": ".", "pick": ["b"], "rename": { "b": "a" } }), json!({ "at": "a" }), true),
            (json!({ "merge": ".", "pick": ["a"], "rename": { "a": "b" } }), json!({ "at": "a" }), false),
            (json!({ "merge": ".", "omit": ["a"], "rename": { "b": "a" } }), json!({ "at": "a" }), true),
            (json!({ "merge": "a" }), json!({ "at": "a" }), true),
            (json!({ "merge": "a" }), json!({ "at": "b" }), false),
            (json!({ "merge": "." }), json!({ "merge": "." }), true),
            (json!({ "merge": ".", "pick": ["x"] }), json!({ "merge": ".", "pick": ["y"] }), false),
            (json!({ "merge": ".", "pick": ["x"] }), json!({ "merge": "." }), true),
            (json!({ "merge": ".", "pick": ["x"] }), json!({ "merge": ".", "omit": ["x"] }), false),
            (json!({ "merge": "." }), json!({ "merge": "a" }), true),
            (json!({ "merge": ".", "omit": ["a"] }), json!({ "merge": "a" }), false),
        ] {
            let (a, b) = (place(one.clone()), place(other.clone()));
            assert_eq!(a.collides(&b).is_some(), meet, "{one} {other}: {:?}", a.collides(&b));
            assert_eq!(b.collides(&a).is_some(), meet, "{other} {one}");
        }
    }
}
