//! Pages of a listing, for the backends that hold names in key order by themselves (memory, file).
//!
//! The token is the last key or folder of the page before: the next page starts behind it.

use crate::{Key, ListPage};

/// Keys and folders in one page, as on S3.
pub(crate) const PAGE_KEYS_MAX: usize = 1_000;

/// What to offer next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next name.
    Next,
    /// The first name at or behind this one: everything before lies in a folder that is listed already.
    JumpTo(String),
    /// The page is full or the prefix is left.
    Done,
}

/// Builds one page out of names offered in byte order.
#[derive(Debug)]
pub(crate) struct Pager {
    /// With its slash, or empty.
    prefix: String,
    recursive: bool,
    after: Option<String>,
    limit: usize,
    last: Option<String>,
    page: ListPage,
}

/// `prefix` as the start of names: with a slash unless it is the root.
pub(crate) fn with_slash(prefix: &str) -> String {
    match prefix.trim_end_matches('/') {
        "" => String::new(),
        parts => format!("{parts}/"),
    }
}

/// The least text that is greater than all that start with `folder` (which ends with a slash).
pub(crate) fn behind_folder(folder: &str) -> String {
    // '0' follows '/' in ASCII.
    format!("{}0", folder.trim_end_matches('/'))
}

impl Pager {
    pub(crate) fn new(prefix: &str, recursive: bool, after: Option<String>, limit: usize) -> Pager {
        Pager {
            prefix: with_slash(prefix),
            recursive,
            after,
            limit: limit.max(1),
            last: None,
            page: ListPage::default(),
        }
    }

    /// The name to start at; names before it need not be offered.
    pub(crate) fn start(&self) -> String {
        match &self.after {
            Some(after) if after.ends_with('/') && after.len() > self.prefix.len() => {
                behind_folder(after)
            }
            Some(after) if *after >= self.prefix => after.clone(),
            _ => self.prefix.clone(),
        }
    }

    /// Takes one name.
    pub(crate) fn offer(&mut self, name: &str, size: u64) -> Step {
        let Some(rest) = name.strip_prefix(self.prefix.as_str()) else {
            return if name < self.prefix.as_str() {
                Step::Next
            } else {
                Step::Done
            };
        };
        if self.after.as_deref().is_some_and(|after| name <= after) {
            return Step::Next;
        }
        let Ok(key) = Key::new(name) else {
            return Step::Next;
        };
        if self.page.objects.len() + self.page.folders.len() >= self.limit {
            self.page.next.clone_from(&self.last);
            return Step::Done;
        }
        match rest.split_once('/') {
            Some((folder, _)) if !self.recursive => {
                let whole = format!("{}{folder}/", self.prefix);
                let behind = behind_folder(&whole);
                self.page.folders.push(folder.to_owned());
                self.last = Some(whole);
                Step::JumpTo(behind)
            }
            _ => {
                self.page.objects.push((key, size));
                self.last = Some(name.to_owned());
                Step::Next
            }
        }
    }

    pub(crate) fn finish(self) -> ListPage {
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages through `names` and gives all that was listed, folders with a slash.
    fn check(names: &[&str], prefix: &str, recursive: bool, limit: usize, expected: &[&str]) {
        let (mut found, mut token) = (Vec::new(), None);
        for _ in 0..=names.len() {
            let mut pager = Pager::new(prefix, recursive, token, limit);
            let mut from = pager.start();
            'jump: loop {
                for name in names.iter().filter(|name| **name >= from.as_str()) {
                    match pager.offer(name, 1) {
                        Step::Next => {}
                        Step::JumpTo(next) => {
                            from = next;
                            continue 'jump;
                        }
                        Step::Done => break 'jump,
                    }
                }
                break;
            }
            let page = pager.finish();
            assert!(page.objects.len() + page.folders.len() <= limit);
            found.extend(page.objects.iter().map(|(key, _)| key.to_string()));
            found.extend(page.folders.iter().map(|folder| format!("{folder}/")));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(token, None, "a listing without an end");
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn every_key_and_folder_is_listed_once_whatever_the_page_size() {
        let names = [
            "a-b/x", "a.b", "a/1", "a/2/x", "a/2/y", "a/3", "a0", "b/c/d", "b/c/e",
        ];
        for limit in [1, 2, 3, 100] {
            check(&names, "", true, limit, &names);
            check(&names, "", false, limit, &["a-b/", "a.b", "a/", "a0", "b/"]);
            check(&names, "a", false, limit, &["2/", "a/1", "a/3"]);
            check(&names, "a", true, limit, &["a/1", "a/2/x", "a/2/y", "a/3"]);
            check(&names, "b", false, limit, &["c/"]);
            check(&names, "nothing", true, limit, &[]);
        }
    }
}
