//! CORE: netlink attributes as bytes, and the expressions of rules that are made of them.

/// Netlink attributes that are being written; numbers are big-endian, as netfilter has them.
pub(super) struct Attributes<'a>(pub(super) &'a mut Vec<u8>);

impl Attributes<'_> {
    fn write(&mut self, kind: u16, write: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        write(&mut Attributes(self.0));
        let length =
            u16::try_from(self.0.len() - start).expect("an attribute of ours has less than 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// An attribute of attributes.
    pub(super) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Attributes<'_>)) {
        self.write(kind | NESTED, write);
    }

    /// A text, with the zero behind it.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.write(kind, |it| {
            it.0.extend(text.as_bytes());
            it.0.push(0);
        });
    }

    /// A number.
    pub(super) fn word(&mut self, kind: u16, word: u32) {
        self.write(kind, |it| it.0.extend(word.to_be_bytes()));
    }

    /// A `NFTA_DATA_VALUE` inside an attribute.
    pub(super) fn value(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |it| it.write(1, |it| it.0.extend(value)));
    }

    /// An expression of a rule, and its own attributes.
    pub(super) fn expression(&mut self, name: &str, write: impl FnOnce(&mut Attributes<'_>)) {
        self.nest(1, |it| {
            it.text(1, name);
            it.nest(2, write);
        });
    }

    /// What the kernel knows of the packet into the register.
    pub(super) fn meta(&mut self, key: u32) {
        self.expression("meta", |it| {
            it.word(1, REGISTER);
            it.word(2, key);
        });
    }

    /// Bytes of the network header into the register.
    pub(super) fn payload(&mut self, offset: u32, length: u32) {
        self.payload_to(REGISTER, offset, length);
    }

    /// Bytes of the network header into a register and those behind it.
    pub(super) fn payload_to(&mut self, register: u32, offset: u32, length: u32) {
        self.expression("payload", |it| {
            it.word(1, register);
            it.word(2, NETWORK_HEADER);
            it.word(3, offset);
            it.word(4, length);
        });
    }

    /// Bytes of the network header from a register and those behind it; no checksum follows.
    pub(super) fn store(&mut self, register: u32, offset: u32, length: u32) {
        self.expression("payload", |it| {
            it.word(2, NETWORK_HEADER);
            it.word(3, offset);
            it.word(4, length);
            it.word(5, register);
        });
    }

    /// Takes the bits of a mask from the register.
    pub(super) fn masked(&mut self, mask: &[u8]) {
        self.expression("bitwise", |it| {
            it.word(1, REGISTER);
            it.word(2, REGISTER);
            it.word(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            it.value(4, mask);
            it.value(5, &vec![0; mask.len()]);
        });
    }

    /// Goes on only if the register has this value.
    pub(super) fn equals(&mut self, value: &[u8]) {
        self.expression("cmp", |it| {
            it.word(1, REGISTER);
            it.word(2, EQUAL);
            it.value(3, value);
        });
    }
}

/// `NLA_F_NESTED` of `linux/netlink.h`.
pub(super) const NESTED: u16 = 0x8000;

// Of `linux/netfilter/nf_tables.h`.
pub(super) const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const EQUAL: u32 = 0;
