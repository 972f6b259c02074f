//! The layout of the workspace: modules import one another one way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{
    Attribute, File, ItemMacro, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

tests![no_modules_import_one_another_in_a_circle, the_analyzers_wings_import_one_way];

/// Packages by the directory of their sources.
const CRATES: [&str; 9] = [
    "schemas/src",
    "schemas/delivery/src",
    "schemas/kubernetes/src",
    "exporter/src",
    "exporter-ebpf/src",
    "analyzer/src",
    "testdata/src",
    "testdata/traffic/src",
    "benches/src",
];

/// Wings of the analyzer, of which each imports those after it alone.
const WINGS: [&str; 15] = [
    "commands",
    "cli",
    "tables",
    "publish",
    "policy",
    "netpol",
    "sets",
    "capture",
    "edge",
    "communication",
    "interrupt",
    "exit",
    "logging",
    "output",
    "yaml",
];

/// What each module of a crate imports of others of it, but for those that it is within. The root of the crate is ``.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn no_modules_import_one_another_in_a_circle() {
    for sources in CRATES {
        let mut imports = imports(sources);
        assert!(imports.len() > 3, "{sources} has modules");
        // Whoever imports nothing that is left is in no circle.
        loop {
            let left: BTreeSet<String> = imports.keys().cloned().collect();
            imports.retain(|_, imported| {
                imported.retain(|module| left.contains(module));
                !imported.is_empty()
            });
            if imports.len() == left.len() {
                break;
            }
        }
        assert!(imports.is_empty(), "circles of imports in {sources}: {imports:#?}");
    }
}

fn the_analyzers_wings_import_one_way() {
    let floor = |module: &str| {
        let wing = module.split("::").next().unwrap_or_default();
        WINGS.iter().position(|of| *of == wing).unwrap_or_else(|| panic!("{module} is in no wing"))
    };
    for (module, imported) in imports("analyzer/src").iter().filter(|(module, _)| !module.is_empty()) {
        for other in imported {
            assert!(floor(module) <= floor(other), "{module} imports {other}");
        }
    }
}

fn imports(sources: &str) -> Imports {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(sources);
    let mut files = BTreeMap::new();
    read(&root, "", &mut files);
    let modules: BTreeSet<String> = files.keys().cloned().collect();
    let of = |(module, file): (&String, &File)| {
        let mut found = Found { module, modules: &modules, imported: BTreeSet::new() };
        found.visit_file(file);
        (module.clone(), found.imported)
    };
    files.iter().map(of).collect()
}

/// Parses the files of a directory, by the paths of their modules.
fn read(directory: &Path, within: &str, files: &mut BTreeMap<String, File>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().expect("a name"));
        let module = |name: &str| if within.is_empty() { name.to_owned() } else { format!("{within}::{name}") };
        if path.is_dir() {
            read(&path, &module(&name), files);
        } else if let Some(name) = name.strip_suffix(".rs") {
            let module = if within.is_empty() && matches!(name, "lib" | "main") { String::new() } else { module(name) };
            let text = fs::read_to_string(&path).expect("a file");
            files.insert(module, syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        }
    }
}

/// What a module imports, as it is found.
struct Found<'a> {
    module: &'a str,
    modules: &'a BTreeSet<String>,
    imported: BTreeSet<String>,
}

impl Found<'_> {
    /// Takes in a path, such as `crate::a::B` or, for a module within this one, `a::B`.
    fn add(&mut self, path: &[String]) {
        let own: Vec<&str> = self.module.split("::").filter(|part| !part.is_empty()).collect();
        let supers = path.iter().take_while(|part| *part == "super").count();
        let (mut at, rest): (Vec<&str>, &[String]) = match path.first().map(String::as_str) {
            Some("crate") => (Vec::new(), &path[1..]),
            Some("self") => (own.clone(), &path[1..]),
            Some("super") => (own[..own.len().saturating_sub(supers)].to_vec(), &path[supers..]),
            _ => (own.clone(), path),
        };
        let is_relative = !matches!(path.first().map(String::as_str), Some("crate" | "self" | "super"));
        let begin = at.len();
        for part in rest {
            at.push(part);
            if !self.modules.contains(&at.join("::")) {
                at.pop();
                break;
            }
        }
        // A name of another crate, or of this module's own.
        if is_relative && at.len() == begin {
            return;
        }
        let is_within = own.starts_with(&at);
        if !is_within {
            self.imported.insert(at.join("::"));
        }
    }

    fn add_tree(&mut self, tree: &UseTree, path: &mut Vec<String>) {
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.add_tree(&part.tree, path);
                path.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(tree, path)),
            UseTree::Name(name) => self.add(&[&path[..], &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.add(&[&path[..], &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.add(path),
        }
    }
}

impl<'ast> Visit<'ast> for Found<'_> {
    /// Tests may import whatever they test with.
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !module.attrs.iter().any(is_for_tests) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&item.tree, &mut Vec::new());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.add(&path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>());
        }
        visit::visit_path(self, path);
    }

    /// What a macro makes is of where it is used.
    fn visit_item_macro(&mut self, _: &'ast ItemMacro) {}
}

fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
}
