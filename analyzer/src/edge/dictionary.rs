//! Texts as small numbers: a dictionary value is looked up once per row group, and rows are compared by number.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, DictionaryArray},
    datatypes::Int32Type,
};
use foldhash::fast::RandomState;

/// Every text that was met, by number; [`Texts::NONE`] stands for none.
#[derive(Default)]
pub(super) struct Texts {
    numbers: HashMap<Arc<str>, u32, RandomState>,
    texts: Vec<Arc<str>>,
}

impl Texts {
    /// No text: null.
    pub(super) const NONE: u32 = 0;

    /// The number of a text.
    pub(super) fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let text: Arc<str> = text.into();
        self.texts.push(Arc::clone(&text));
        let number = self.texts.len() as u32;
        self.numbers.insert(text, number);
        number
    }

    /// The number of a text, or [`Self::NONE`].
    pub(super) fn number_of(&mut self, text: Option<&str>) -> u32 {
        text.map_or(Self::NONE, |text| self.number(text))
    }

    /// The text of a number; `None` for [`Self::NONE`].
    pub(super) fn text(&self, number: u32) -> Option<&Arc<str>> {
        (number as usize).checked_sub(1).and_then(|at| self.texts.get(at))
    }

    /// The texts of numbers, in order.
    pub(super) fn sorted(&self, numbers: &[u32]) -> Vec<Arc<str>> {
        let mut texts: Vec<_> = numbers.iter().filter_map(|number| self.text(*number).cloned()).collect();
        texts.sort();
        texts
    }
}

/// One text column of the batches that are read, as numbers.
#[derive(Default)]
pub(super) struct TextColumn {
    /// The dictionary that was met last, and the number of each of its values.
    dictionary: Option<ArrayRef>,
    values: Vec<u32>,
    rows: Vec<u32>,
}

impl TextColumn {
    /// Takes in the column of the next batch.
    pub(super) fn load(&mut self, column: &DictionaryArray<Int32Type>, texts: &mut Texts) {
        let is_same = |known: &ArrayRef| {
            let (known, new) = (known.as_string::<i32>(), column.values().as_string::<i32>());
            // The values are compared by where they are, which is in use for as long as they are kept here.
            known.len() == new.len()
                && known.value_data().as_ptr() == new.value_data().as_ptr()
                && known.value_offsets().as_ptr() == new.value_offsets().as_ptr()
        };
        if !self.dictionary.as_ref().is_some_and(is_same) {
            self.dictionary = Some(Arc::clone(column.values()));
            self.values.clear();
            let values = column.values().as_string::<i32>();
            self.values.extend(values.iter().map(|text| texts.number_of(text)));
        }
        self.rows.clear();
        let keys = column.keys();
        if keys.null_count() == 0 {
            self.rows.extend(keys.values().iter().map(|key| self.values[*key as usize]));
        } else {
            self.rows.extend(keys.iter().map(|key| key.map_or(Texts::NONE, |key| self.values[key as usize])));
        }
    }

    /// The number of the text in every row.
    pub(super) fn rows(&self) -> &[u32] {
        &self.rows
    }
}
