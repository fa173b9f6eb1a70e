//! The headers of a stream, and the block they stand in before it is compressed (draft 3.1, section 2.6.10).

use super::error::FrameError;

/// Headers: lowercase names, each with one or more values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    pub fn new() -> Headers {
        Headers::default()
    }

    /// These headers and one more value. The name is made lowercase; a NUL in a value parts two values.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Headers {
        let name = name.to_ascii_lowercase();
        match self.0.iter_mut().find(|(have, _)| *have == name) {
            Some((_, values)) => {
                values.push('\0');
                values.push_str(value);
            }
            None => self.0.push((name, value.to_owned())),
        }
        self
    }

    /// The first value under `name`, in whatever case that is written.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    /// All values under `name`, in whatever case that is written.
    pub fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let found = self.0.iter().find(|(have, _)| have.eq_ignore_ascii_case(name));
        found.into_iter().flat_map(|(_, values)| values.split('\0'))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the block to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.0.len() as u32).to_be_bytes());
        for text in self.0.iter().flat_map(|(name, values)| [name, values]) {
            out.extend_from_slice(&(text.len() as u32).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// Reads a block of at most `most` headers, which must fill `block`.
    ///
    /// # Errors
    /// What is wrong with the block: it is cut off or too long, has too many headers, or a name or value that
    /// may not be.
    pub(super) fn read(block: &[u8], most: usize) -> Result<Headers, FrameError> {
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > most {
            return Err(FrameError::TooManyHeaders { count, most });
        }
        let mut headers: Vec<(String, String)> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut rest)?;
            let value = text(&mut rest)?;
            if name.is_empty() || name.contains(['\0']) || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                return Err(FrameError::HeaderName { name: name.escape_default().to_string() });
            }
            if headers.iter().any(|(have, _)| have == name) {
                return Err(FrameError::HeaderTwice { name: name.to_owned() });
            }
            headers.push((name.to_owned(), value.to_owned()));
        }
        if !rest.is_empty() {
            return Err(FrameError::HeaderBlock("bytes after the last header"));
        }
        Ok(Headers(headers))
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, FrameError> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(FrameError::HeaderBlock("it ends early"))?;
    *rest = after;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, FrameError> {
    let len = number(rest)?;
    let (text, after) = rest.split_at_checked(len).ok_or(FrameError::HeaderBlock("it ends early"))?;
    *rest = after;
    str::from_utf8(text).map_err(|_| FrameError::HeaderBlock("text that is not UTF-8"))
}
