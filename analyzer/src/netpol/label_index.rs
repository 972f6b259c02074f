//! Who is selected by a label selector, of many at once.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use roaring::RoaringBitmap;
use schemas::inventory::Labels;

/// Label sets by number, found by what they hold.
#[derive(Debug, Default)]
pub(crate) struct LabelIndex {
    all: RoaringBitmap,
    keys: HashMap<Arc<str>, HashMap<Arc<str>, RoaringBitmap>>,
}

impl LabelIndex {
    /// Numbers label sets in order.
    pub(crate) fn new<'a>(sets: impl IntoIterator<Item = &'a Labels>) -> Self {
        let mut index = Self::default();
        for (number, labels) in sets.into_iter().enumerate() {
            index.all.insert(number as u32);
            for (key, value) in labels {
                let values = index.keys.entry(Arc::clone(key)).or_default();
                values.entry(Arc::clone(value)).or_default().insert(number as u32);
            }
        }
        index
    }

    /// The numbers of those that a selector selects; an empty one selects all.
    ///
    /// # Errors
    /// An operator is not known.
    pub(crate) fn select(&self, selector: &LabelSelector) -> Result<RoaringBitmap, String> {
        let mut selected = self.all.clone();
        for (key, value) in selector.match_labels.iter().flatten() {
            selected &= self.having(key, std::slice::from_ref(value));
        }
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.as_deref().unwrap_or_default();
            match expression.operator.as_str() {
                "In" => selected &= self.having(&expression.key, values),
                "NotIn" => selected -= self.having(&expression.key, values),
                "Exists" => selected &= self.with(&expression.key),
                "DoesNotExist" => selected -= self.with(&expression.key),
                other => return Err(format!("`{other}` is not an operator of label selectors")),
            }
        }
        Ok(selected)
    }

    fn having(&self, key: &str, values: &[String]) -> RoaringBitmap {
        let known = self.keys.get(key);
        let sets = values.iter().filter_map(|value| known?.get(value.as_str()));
        sets.fold(RoaringBitmap::new(), |all, set| all | set)
    }

    fn with(&self, key: &str) -> RoaringBitmap {
        let sets = self.keys.get(key).into_iter().flat_map(HashMap::values);
        sets.fold(RoaringBitmap::new(), |all, set| all | set)
    }
}
