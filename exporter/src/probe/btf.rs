//! The kernel's type information (BTF), as far as offsets of fields and the arguments of functions go.
//!
//! aya reads it too, for what it loads, but shows no members. The format: the kernel's `Documentation/bpf/btf.rst`.

/// Types of a kernel, over the bytes of its file.
pub(super) struct Types<'a> {
    /// Type records, one after the other.
    records: &'a [u8],
    strings: &'a [u8],
    /// Where each type's record begins; type 0 is `void`, which has none.
    starts: Vec<u32>,
    /// Numbers of those that have names to look for: structs, typedefs and functions.
    named: [Vec<u32>; 3],
}

/// Kinds of types that are looked for by name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Struct,
    Typedef,
    Function,
}

/// The head of a type's record.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    kind: u32,
    /// How many members, values or parameters follow.
    length: u32,
    /// Whether members' offsets have the widths of bit fields in their upper 8 bits.
    has_widths: bool,
    /// The type it is made of, or a size.
    of: u32,
}

/// A member of a struct or union.
struct Member {
    name: u32,
    of: u32,
    /// From the beginning of the struct, in bits.
    bits: u32,
}

/// The file is not what it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("it is no BTF of this machine: {0}")]
pub(super) struct Malformed(&'static str);

impl<'a> Types<'a> {
    /// Finds where each type is.
    ///
    /// # Errors
    /// The bytes are no BTF, or of another byte order.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        if magic != Some(MAGIC) {
            return Err(Malformed("its magic number differs"));
        }
        let header = |at| word(bytes, at).map(|word| word as usize).ok_or(Malformed("its header is cut off"));
        let end = header(4)?;
        let section = |offset, length| {
            let start = end.checked_add(offset)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let records = section(header(8)?, header(12)?).ok_or(Malformed("its types are cut off"))?;
        let strings = section(header(16)?, header(20)?).ok_or(Malformed("its strings are cut off"))?;
        let mut types = Self { records, strings, starts: vec![u32::MAX], named: Default::default() };
        let mut at = 0;
        while at < records.len() {
            let head = types.head_at(at).ok_or(Malformed("a type is cut off"))?;
            let number = types.starts.len() as u32;
            types.starts.push(at as u32);
            match head.kind {
                STRUCT => types.named[Kind::Struct as usize].push(number),
                TYPEDEF => types.named[Kind::Typedef as usize].push(number),
                FUNC => types.named[Kind::Function as usize].push(number),
                _ => {}
            }
            at += HEAD_BYTES + head.rest().ok_or(Malformed("a type is of an unknown kind"))?;
        }
        Ok(types)
    }

    /// Offset of `struct.member.member…` in bits, through members without a name, as in C; `None` where there is none.
    pub(super) fn bits_of(&self, path: &str) -> Option<u32> {
        let mut names = path.split('.');
        let first = names.next()?;
        self.find(Kind::Struct, first).find_map(|number| {
            let mut found = (0, number);
            for name in names.clone() {
                let (bits, member) = self.find_member(found.1, name, NESTED)?;
                found = (found.0 + bits, member);
            }
            Some(found.0)
        })
    }

    /// Whether there is a typedef of a name.
    pub(super) fn has_typedef(&self, name: &str) -> bool {
        self.find(Kind::Typedef, name).next().is_some()
    }

    /// How many arguments a function has; `None` where there is no such function.
    pub(super) fn arguments(&self, function: &str) -> Option<usize> {
        self.find(Kind::Function, function).find_map(|number| {
            let prototype = self.head(self.head(number)?.of)?;
            (prototype.kind == FUNC_PROTO).then_some(prototype.length as usize)
        })
    }

    /// The bytes of type information in which only these types have names, and every type has the number that it has here:
    /// what aya needs to attach to functions (`Func`), tracepoints and iterators. The whole takes it 30 ms to read, and 3 ms to
    /// look a name up in.
    pub(super) fn only<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Vec<u8> {
        let mut strings = vec![0];
        let mut records: Vec<u8> = Vec::new();
        for name in names {
            for kind in [Kind::Typedef, Kind::Function] {
                for number in self.find(kind, name) {
                    let end = number as usize * HEAD_BYTES;
                    while records.len() < end {
                        records.extend([0, FORWARD << 24, 0].into_iter().flat_map(u32::to_ne_bytes));
                    }
                    let head = [strings.len() as u32, kind.number() << 24, 0];
                    records[end - HEAD_BYTES..end].copy_from_slice(head.map(u32::to_ne_bytes).as_flattened());
                }
            }
            strings.extend(name.bytes().chain([0]));
        }
        written(&records, &strings)
    }

    /// Numbers of the types of a kind and name.
    fn find(&self, kind: Kind, name: &str) -> impl Iterator<Item = u32> {
        let numbers = self.named[kind as usize].iter().copied();
        numbers.filter(move |number| self.head(*number).is_some_and(|head| self.is_named(head.name, name)))
    }

    /// A member's offset in bits, and its type; unnamed members are looked into, so many deep.
    fn find_member(&self, parent: u32, name: &str, nested: u32) -> Option<(u32, u32)> {
        let (start, head) = self.composite(parent)?;
        let members = (0..head.length).filter_map(|index| self.member(start, head, index));
        members.into_iter().find_map(|member| {
            if self.is_named(member.name, name) {
                return Some((member.bits, member.of));
            }
            if !self.is_named(member.name, "") || nested == 0 {
                return None;
            }
            let (bits, found) = self.find_member(member.of, name, nested - 1)?;
            Some((member.bits + bits, found))
        })
    }

    fn member(&self, start: usize, head: Head, index: u32) -> Option<Member> {
        let at = start + HEAD_BYTES + MEMBER_BYTES * index as usize;
        let offset = word(self.records, at + 8)?;
        let bits = if head.has_widths { offset & 0x00FF_FFFF } else { offset };
        Some(Member { name: word(self.records, at)?, of: word(self.records, at + 4)?, bits })
    }

    /// The struct or union behind names and qualifiers, and where its record begins.
    fn composite(&self, mut number: u32) -> Option<(usize, Head)> {
        for _ in 0..CHAIN {
            let start = *self.starts.get(number as usize)? as usize;
            let head = self.head_at(start)?;
            match head.kind {
                STRUCT | UNION => return Some((start, head)),
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => number = head.of,
                _ => return None,
            }
        }
        None
    }

    fn head(&self, number: u32) -> Option<Head> {
        self.head_at(*self.starts.get(number as usize)? as usize)
    }

    fn head_at(&self, at: usize) -> Option<Head> {
        let info = word(self.records, at.checked_add(4)?)?;
        let (name, of) = (word(self.records, at)?, word(self.records, at + 8)?);
        Some(Head { name, kind: info >> 24 & 0x1F, length: info & 0xFFFF, has_widths: info >> 31 == 1, of })
    }

    /// Whether the name at an offset of the strings is this one.
    fn is_named(&self, offset: u32, name: &str) -> bool {
        let text = self.strings.get(offset as usize..).and_then(|text| text.strip_prefix(name.as_bytes()));
        text.is_some_and(|rest| rest.first() == Some(&0))
    }
}

impl Kind {
    const fn number(self) -> u32 {
        match self {
            Self::Struct => STRUCT,
            Self::Typedef => TYPEDEF,
            Self::Function => FUNC,
        }
    }
}

impl Head {
    /// Bytes of its record after the head; `None` where the kind is not known.
    fn rest(self) -> Option<usize> {
        let length = self.length as usize;
        Some(match self.kind {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION | DATASEC | ENUM64 => MEMBER_BYTES * length,
            ENUM | FUNC_PROTO => 8 * length,
            POINTER | FORWARD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
            _ => return None,
        })
    }
}

/// A file of types and strings.
fn written(records: &[u8], strings: &[u8]) -> Vec<u8> {
    let (length, rest) = (records.len() as u32, strings.len() as u32);
    let [low, high] = MAGIC.to_ne_bytes();
    let header = [u32::from_ne_bytes([low, high, VERSION, 0]), HEADER_BYTES, 0, length, length, rest];
    [header.map(u32::to_ne_bytes).as_flattened(), records, strings].concat()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

const MAGIC: u16 = 0xEB9F;
const VERSION: u8 = 1;
const HEADER_BYTES: u32 = 24;
const HEAD_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;
/// Most names and qualifiers before a struct, and most unnamed members within each other: more than any kernel has.
const CHAIN: usize = 32;
const NESTED: u32 = 16;

const INT: u32 = 1;
const POINTER: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FORWARD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

#[cfg(test)]
mod tests {
    use aya::{Btf, Endianness};
    use aya_obj::btf::BtfKind;
    use proptest::prelude::*;

    use super::*;

    const STRINGS: &[u8] = b"\0int\0a\0b\0either\0outer\0first\0second\0act\0";

    fn name(name: &str) -> u32 {
        let text = [&[0], name.as_bytes(), &[0]].concat();
        STRINGS.windows(text.len()).position(|window| window == text).unwrap() as u32 + 1
    }

    /// `struct outer { int first; union either second; }; int act(int a, int b)`, where `either` is a name of a union that has
    /// an unnamed `struct { int a; int b : 4; }`.
    fn example() -> Vec<u8> {
        let records: [&[u32]; 7] = [
            &[name("int"), INT << 24, 4, 32],
            &[0, 1 << 31 | STRUCT << 24 | 2, 8, name("a"), 1, 0, name("b"), 1, 4 << 24 | 32],
            &[0, UNION << 24 | 1, 8, 0, 2, 0],
            &[name("either"), TYPEDEF << 24, 3],
            &[name("outer"), STRUCT << 24 | 2, 16, name("first"), 1, 0, name("second"), 4, 64],
            &[0, FUNC_PROTO << 24 | 2, 1, name("a"), 1, name("b"), 1],
            &[name("act"), FUNC << 24, 6],
        ];
        let records: Vec<u8> = records.concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
        written(&records, STRINGS)
    }

    #[test]
    fn the_running_kernels_type_information_is_read() {
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let types = Types::parse(&bytes).unwrap();
        // The first member of `struct sock`, in all kernels.
        assert_eq!(types.bits_of("sock.__sk_common.skc_daddr"), Some(0));
        assert_eq!(types.arguments("tcp_connect"), Some(1));
    }

    #[test]
    fn members_are_found_through_names_and_unnamed_members() {
        let bytes = example();
        let types = Types::parse(&bytes).unwrap();
        assert_eq!(types.bits_of("outer.first"), Some(0));
        assert_eq!(types.bits_of("outer.second.b"), Some(96));
        assert_eq!(types.bits_of("outer.second.c"), None);
        assert_eq!(types.bits_of("oute.first"), None);
        assert_eq!(types.arguments("act"), Some(2));
        assert_eq!(types.arguments("a"), None);
        assert!(types.has_typedef("either") && !types.has_typedef("outer"));
    }

    #[test]
    fn what_is_left_has_its_names_and_numbers() {
        let bytes = example();
        let left = Types::parse(&bytes).unwrap().only(["act", "either", "nothing"]);
        let types = Types::parse(&left).unwrap();
        assert_eq!(types.find(Kind::Typedef, "either").collect::<Vec<_>>(), [4]);
        assert_eq!(types.find(Kind::Function, "act").collect::<Vec<_>>(), [7]);
        let btf = Btf::parse(&left, Endianness::default()).unwrap();
        assert_eq!(btf.id_by_type_name_kind("either", BtfKind::Typedef).unwrap(), 4);
        assert_eq!(btf.id_by_type_name_kind("act", BtfKind::Func).unwrap(), 7);
        assert!(btf.id_by_type_name_kind("outer", BtfKind::Struct).is_err());
    }

    #[test]
    fn what_is_no_type_information_says_why() {
        let bytes = example();
        assert_eq!(Types::parse(b"").err(), Some(Malformed("its magic number differs")));
        assert_eq!(Types::parse(&bytes[..12]).err(), Some(Malformed("its header is cut off")));
        assert_eq!(Types::parse(&bytes[..bytes.len() - 1]).err(), Some(Malformed("its strings are cut off")));
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0..400_usize, value: u8) {
            let mut bytes = example();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(types) = Types::parse(&bytes) {
                types.bits_of("outer.second.b");
                types.arguments("act");
            }
        }
    }
}
