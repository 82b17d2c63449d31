//! What can be said about the source itself: each module says what it is, no file outgrows its noun, and nothing depends on the
//! machine it was written on.

use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

fn visit(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder)
        .expect("a readable folder")
        .flatten()
    {
        let (path, name) = (
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
        );
        if path.is_dir() {
            if !name.starts_with('.')
                && name != "target"
                && name != "node_modules"
                && name != "everlog-demo"
            {
                visit(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    visit(&root(), &mut found);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found
        .into_iter()
        .map(|path| (path.clone(), std::fs::read_to_string(path).expect("text")))
        .collect()
}

fn none(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n{}", offenders.join("\n"));
}

#[test]
fn each_module_opens_with_what_it_is() {
    let offenders: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    none("modules without //! on their first line", &offenders);
}

#[test]
fn no_file_is_longer_than_one_noun_needs() {
    let offenders: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| text.lines().count() > FILE_LINES_MAX)
        .map(|(path, text)| format!("{} has {} lines", path.display(), text.lines().count()))
        .collect();
    none("long files", &offenders);
}

#[test]
fn nothing_is_left_unfinished() {
    // Put together here, or this file would be its own offender.
    let words: Vec<String> = ["todo", "unimplemented", "dbg"]
        .iter()
        .map(|word| format!("{word}!("))
        .collect();
    let ignored = format!("#[{}", "ignore");
    let mut offenders = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if words.iter().any(|word| code.contains(word.as_str())) || code.starts_with(&ignored) {
                offenders.push(format!("{}:{}: {code}", path.display(), number + 1));
            }
        }
    }
    none("unfinished or switched off", &offenders);
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    let home = std::env::var("HOME").unwrap_or_default();
    let parent = root()
        .parent()
        .map(|parent| format!("{}/", parent.display()))
        .unwrap_or_default();
    let places: Vec<String> = [home + "/", parent]
        .into_iter()
        .filter(|place| place.len() > 2 && !matches!(place.as_str(), "/tmp/" | "/home/"))
        .collect();
    let mut found = Vec::new();
    visit(&root(), &mut found);
    let mut offenders = Vec::new();
    for path in found {
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                offenders.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    none("paths of this machine", &offenders);
}
