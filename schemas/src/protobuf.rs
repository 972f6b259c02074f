//! Protobuf's wire format: fields of a message, read without a copy and written in one pass.

/// Bytes that are no protobuf message, or none of the expected kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not an OTLP logs request in protobuf: {0}")]
pub struct Malformed(pub &'static str);

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message, with their numbers, in order.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a>(pub &'a [u8]);

impl<'a> Wire<'a> {
    /// What is within a field that holds a message, text or bytes.
    #[inline]
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed("a message or text is of another type")),
        }
    }

    pub fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("text is not UTF-8"))
    }
}

impl<'a> Message<'a> {
    /// Reads the next field; `None` at the end.
    #[inline]
    fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..=MAX_NUMBER).contains(number));
        let number = number.ok_or(Malformed("a field has no valid number"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| CUT)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(Malformed("a field has an unknown wire type")),
        };
        Ok(Some((number, wire)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        match self.0 {
            // Most tags and lengths.
            [byte, rest @ ..] if *byte < 0x80 => {
                self.0 = rest;
                Ok((*byte).into())
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for (shift, byte) in (0..70).step_by(7).zip(self.0) {
            // Of the tenth byte, a number of 64 bits has one.
            if shift == 63 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                self.0 = &self.0[shift / 7 + 1..];
                return Ok(value);
            }
        }
        Err(Malformed("a number is cut short or too long"))
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| CUT)
    }
}

impl<'a> Iterator for Message<'a> {
    type Item = Result<(u32, Wire<'a>), Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        field.transpose()
    }
}

/// Appends a field that is a varint.
pub fn put_varint(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number) << 3);
    varint(out, value);
}

/// Appends a field of eight bytes.
pub fn put_fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a field that is a message, text or bytes.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_length(out, number, bytes.len());
    out.extend_from_slice(bytes);
}

/// Begins a field that is a message, text or bytes of a known length.
pub fn put_length(out: &mut Vec<u8>, number: u32, length: usize) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, length as u64);
}

/// Bytes that [`put_length`] and as many bytes take, of a field numbered up to 15.
pub const fn field_bytes(length: usize) -> usize {
    1 + varint_bytes(length as u64) + length
}

/// Bytes that a varint takes.
pub const fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

const MAX_NUMBER: u32 = (1 << 29) - 1;
const CUT: Malformed = Malformed("it is cut short");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_come_back(number in 1..MAX_NUMBER, value: u64, bytes: Vec<u8>) {
            let mut out = Vec::new();
            put_varint(&mut out, number, value);
            put_fixed64(&mut out, number, value);
            put_bytes(&mut out, number, &bytes);
            let read: Result<Vec<_>, _> = Message(&out).collect();
            let put = vec![(number, Wire::Varint(value)), (number, Wire::Fixed64(value)), (number, Wire::Bytes(&bytes))];
            prop_assert_eq!(read, Ok(put));
            prop_assert_eq!(varint_bytes(value), { let mut out = Vec::new(); varint(&mut out, value); out.len() });
        }

        #[test]
        fn garbage_ends_in_an_error_or_an_end(bytes: Vec<u8>) {
            let fields: Vec<_> = Message(&bytes).collect();
            prop_assert!(fields.iter().rev().skip(1).all(Result::is_ok), "nothing follows an error");
        }
    }
}
