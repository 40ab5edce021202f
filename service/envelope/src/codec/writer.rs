use minicbor::Encoder;

/// Writes a map of up to 23 integer keys, which must come in ascending order.
pub(crate) struct MapWriter {
    writer: Writer,
    entries: u8,
    last_key: Option<u64>,
}

impl MapWriter {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.push(EMPTY_MAP);
        Self { writer: Writer(Encoder::new(bytes)), entries: 0, last_key: None }
    }

    /// Begins an entry; exactly one value must follow.
    pub(crate) fn key(&mut self, key: u64) -> &mut Writer {
        debug_assert!(self.last_key < Some(key), "keys come in ascending order");
        self.last_key = Some(key);
        self.entries += 1;
        self.writer.uint(key);
        &mut self.writer
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        debug_assert!(self.entries < 24, "the head of the map is one byte");
        let mut bytes = self.writer.0.into_writer();
        bytes[0] |= self.entries;
        bytes
    }
}

/// A CBOR encoder into memory, where writing cannot fail.
pub(crate) struct Writer(Encoder<Vec<u8>>);

impl Writer {
    pub(crate) fn uint(&mut self, value: u64) {
        self.0.u64(value).expect(INFALLIBLE);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.bytes(bytes).expect(INFALLIBLE);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.0.str(text).expect(INFALLIBLE);
    }

    pub(crate) fn array(&mut self, length: usize) {
        self.0.array(length as u64).expect(INFALLIBLE);
    }

    pub(crate) fn map(&mut self, length: usize) {
        self.0.map(length as u64).expect(INFALLIBLE);
    }
}

const EMPTY_MAP: u8 = 0xa0;
const INFALLIBLE: &str = "writing to memory cannot fail";
