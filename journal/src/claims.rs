//! The order of the ring: who has claimed which cells, and what became of each record.
//!
//! `tail` is one word that holds the end of the claimed space, the length of the newest claim and its owner, so a
//! single compare-and-swap both claims space and says who did. The fate of a record lives in a control word beside
//! the payload, tagged with the record's position. Whoever wants to claim next, and the consumer, first *helps* to
//! write the control word of the newest claim: there is no moment in which space is taken by nobody. The tag keeps a
//! helper that was stalled for long from writing into a cell that has been used again.
//!
//! Nothing here blocks, allocates or makes a system call; all of it may be interrupted by a signal handler that
//! claims too, and may be ended by SIGKILL between any two instructions.

use crate::sync::{AtomicU64, Ordering};

/// Bytes in a cell, the unit in which the ring is claimed; one cache line.
pub const CELL_BYTES: usize = 64;

/// Most cells that one record may take, header included (a 12-bit field of the tail word).
pub const RECORD_CELLS_MAX: u64 = 0xfff;

const POSITION_BITS: u32 = 36;
const POSITION_MASK: u64 = (1 << POSITION_BITS) - 1;

/// A place in the endless row of cells, counted modulo 2^36.
///
/// 2^36 cells are 4 TiB of records; positions are only ever compared by distance, and the ring is far smaller than
/// half of that, so wrapping is harmless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position(u64);

impl Position {
    /// The position with this number, modulo 2^36.
    pub const fn new(value: u64) -> Self {
        Self(value & POSITION_MASK)
    }

    /// The number, below 2^36.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `cells` further on.
    #[must_use]
    pub const fn plus(self, cells: u64) -> Self {
        Self::new(self.0.wrapping_add(cells))
    }

    /// How many cells `self` lies behind `earlier`.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.wrapping_sub(earlier.0) & POSITION_MASK
    }

    const fn tag(self) -> u32 {
        self.0 as u32
    }
}

/// The number of a slot, which names the thread that owns a claim. Below 65,536.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner(pub u16);

/// What became of a claimed record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Fate {
    /// Space is taken, the header is not written yet; the system call can't have started.
    Claimed = 1,
    /// The header says what will be done; the system call may or may not have taken effect.
    Intent = 2,
    /// The call took effect, the record says how.
    Committed = 3,
    /// Nothing took effect; the record is skipped.
    Aborted = 4,
    /// The owner died or was overtaken between intent and commit; what the intent names is re-read from the primary.
    Repair = 5,
    /// Filler up to the end of the ring.
    Pad = 6,
}

impl Fate {
    const fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            1 => Self::Claimed,
            2 => Self::Intent,
            3 => Self::Committed,
            4 => Self::Aborted,
            5 => Self::Repair,
            6 => Self::Pad,
            _ => return None,
        })
    }
}

/// A claim as its control word describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Where it begins.
    pub position: Position,
    /// How many cells it takes, header included.
    pub cells: u64,
    /// Who made it.
    pub owner: Owner,
}

/// The consumer's view of the record at a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peek {
    /// Nothing has been claimed there.
    Empty,
    /// Its owner has not decided yet.
    Undecided(Claim),
    /// Its fate is known and final.
    Decided(Claim, Fate),
    /// The control word is not one that this code writes: somebody scribbled over the ring.
    Damaged,
}

/// How many records of a dead owner were settled, by [`Claims::settle_dead`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// Claims whose call had not started; dropped.
    pub dropped: u64,
    /// Intents whose effect is unknown; to be re-read.
    pub repairs: u64,
}

#[derive(Clone, Copy)]
struct Tail {
    end: Position,
    cells: u64,
    owner: Owner,
}

impl Tail {
    const fn unpack(word: u64) -> Self {
        Self { end: Position::new(word >> 28), cells: (word >> 16) & 0xfff, owner: Owner(word as u16) }
    }

    const fn pack(self) -> u64 {
        (self.end.0 << 28) | (self.cells << 16) | self.owner.0 as u64
    }
}

const fn control(position: Position, fate: Fate, cells: u64, owner: Owner) -> u64 {
    ((position.tag() as u64) << 32) | ((fate as u64) << 28) | (cells << 16) | owner.0 as u64
}

const fn tag_of(word: u64) -> u32 {
    (word >> 32) as u32
}

/// True when `tag` is that of `position` or of a later lap.
const fn tag_reached(tag: u32, position: Position) -> bool {
    tag.wrapping_sub(position.tag()) as i32 >= 0
}

/// The tail, the head and the control words of one ring.
#[derive(Clone, Copy)]
pub struct Claims<'a> {
    tail: &'a AtomicU64,
    head: &'a AtomicU64,
    control: &'a [AtomicU64],
}

impl<'a> Claims<'a> {
    /// The words that a new ring of `cells` cells starts with: (tail, head).
    ///
    /// Positions begin at `cells`, so that the zeroed control words of a new ring are all of an older lap.
    pub const fn initial(cells: u64) -> (u64, u64) {
        (Tail { end: Position::new(cells), cells: 0, owner: Owner(0) }.pack(), cells)
    }

    /// Takes the words of a ring. The number of control words is the number of cells, a power of two.
    pub fn new(tail: &'a AtomicU64, head: &'a AtomicU64, control: &'a [AtomicU64]) -> Self {
        debug_assert!(control.len().is_power_of_two());
        Self { tail, head, control }
    }

    fn cells(&self) -> u64 {
        self.control.len() as u64
    }

    fn word(&self, position: Position) -> &'a AtomicU64 {
        // The mask makes the index smaller than the length whatever the position says.
        &self.control[(position.0 & (self.cells() - 1)) as usize]
    }

    /// The end of the claimed space.
    pub fn end(&self) -> Position {
        Tail::unpack(self.tail.load(Ordering::Acquire)).end
    }

    /// The oldest position that the consumer has not released.
    pub fn head(&self) -> Position {
        Position::new(self.head.load(Ordering::Acquire))
    }

    /// Cells that are free now.
    pub fn free(&self) -> u64 {
        self.cells().saturating_sub(self.end().since(self.head()))
    }

    /// Makes sure that the control word of the newest claim exists.
    fn help(&self, tail: Tail) {
        if tail.cells == 0 {
            return;
        }
        let start = Position::new(tail.end.0.wrapping_sub(tail.cells));
        let word = self.word(start);
        let current = word.load(Ordering::Acquire);
        if tag_reached(tag_of(current), start) {
            return;
        }
        let claimed = control(start, Fate::Claimed, tail.cells, tail.owner);
        // A failure means that somebody else helped, or that the ring has gone round meanwhile; both are fine.
        let _ = word.compare_exchange(current, claimed, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Claims `cells` cells in one piece for `owner`, or `None` when there is no room now.
    ///
    /// Lock-free; async-signal-safe; leaves nothing behind when the caller is killed inside.
    pub fn claim(&self, owner: Owner, cells: u64) -> Option<Claim> {
        let mut word = self.tail.load(Ordering::Acquire);
        loop {
            let tail = Tail::unpack(word);
            self.help(tail);
            let index = tail.end.0 & (self.cells() - 1);
            let to_end = self.cells() - index;
            let (want, pad) = if cells > to_end { (to_end.min(RECORD_CELLS_MAX), true) } else { (cells, false) };
            if tail.end.plus(want).since(self.head()) > self.cells() {
                return None;
            }
            let next = Tail { end: tail.end.plus(want), cells: want, owner };
            match self.tail.compare_exchange_weak(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.help(next);
                    let claim = Claim { position: tail.end, cells: want, owner };
                    if !pad {
                        return Some(claim);
                    }
                    self.decide(claim, Fate::Claimed, Fate::Pad);
                    word = self.tail.load(Ordering::Acquire);
                }
                Err(newer) => word = newer,
            }
        }
    }

    /// Moves a claim from one fate to the next; false when somebody else has decided it meanwhile.
    ///
    /// The release ordering pairs with the acquire in [`Claims::peek`]: who sees `Committed` sees the record's bytes.
    pub fn decide(&self, claim: Claim, from: Fate, to: Fate) -> bool {
        let old = control(claim.position, from, claim.cells, claim.owner);
        let new = control(claim.position, to, claim.cells, claim.owner);
        // Sequentially consistent, because a commit is followed by a look at whether the consumer sleeps.
        self.word(claim.position).compare_exchange(old, new, Ordering::SeqCst, Ordering::Acquire).is_ok()
    }

    /// Looks at the record that begins at `position`, which must be the head or the end of the record before it.
    pub fn peek(&self, position: Position) -> Peek {
        let tail = Tail::unpack(self.tail.load(Ordering::Acquire));
        if position == tail.end {
            return Peek::Empty;
        }
        if position.plus(tail.cells) == tail.end {
            self.help(tail);
        }
        let word = self.word(position).load(Ordering::Acquire);
        let cells = (word >> 16) & 0xfff;
        let claim = Claim { position, cells, owner: Owner(word as u16) };
        if tag_of(word) != position.tag() || cells == 0 || cells > tail.end.since(position) {
            return Peek::Damaged;
        }
        match Fate::from_bits((word >> 28) & 0xf) {
            None => Peek::Damaged,
            Some(Fate::Claimed | Fate::Intent) => Peek::Undecided(claim),
            Some(fate) => Peek::Decided(claim, fate),
        }
    }

    /// Gives everything before `position` back to the producers. Only the consumer calls this.
    pub fn release(&self, position: Position) {
        self.head.store(position.0, Ordering::Release);
    }

    /// Settles what a dead owner has left between head and tail, while the locks that it held are still held.
    ///
    /// A claim whose call can't have started is dropped; an intent becomes a repair. The caller makes sure that the
    /// owner is dead and that no other thread settles it at the same time.
    pub fn settle_dead(&self, dead: Owner) -> Settled {
        let mut settled = Settled::default();
        self.help(Tail::unpack(self.tail.load(Ordering::Acquire)));
        let end = self.end();
        'from_head: loop {
            let head = self.head();
            let mut position = head;
            // `since` is a distance modulo 2^36: a head beyond the remembered end shows as one larger than the ring.
            while position != end && end.since(position) <= self.cells() {
                let word = self.word(position).load(Ordering::Acquire);
                let cells = (word >> 16) & 0xfff;
                if tag_of(word) != position.tag() || cells == 0 {
                    if self.head() != head {
                        continue 'from_head;
                    }
                    return settled;
                }
                let claim = Claim { position, cells, owner: Owner(word as u16) };
                if claim.owner == dead {
                    match Fate::from_bits((word >> 28) & 0xf) {
                        Some(Fate::Claimed) if self.decide(claim, Fate::Claimed, Fate::Aborted) => settled.dropped += 1,
                        Some(Fate::Intent) if self.decide(claim, Fate::Intent, Fate::Repair) => settled.repairs += 1,
                        _ => {}
                    }
                }
                position = position.plus(cells);
            }
            return settled;
        }
    }
}
