//! A command whose stream was another guest's: it goes on, and nobody listens.
//!
//! What it writes is taken and dropped, so that it is neither held up nor ended by it. Its
//! input stays open, without anything to come.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Orphan {
    /// `None` where nobody can write any more.
    outputs: Vec<Option<Rc<OwnedFd>>>,
    _input: Option<Rc<OwnedFd>>,
}

impl Orphan {
    pub(super) fn new(
        input: Option<Rc<OwnedFd>>,
        outputs: impl Iterator<Item = Rc<OwnedFd>>,
    ) -> Orphan {
        Orphan {
            outputs: outputs.map(Some).collect(),
            _input: input,
        }
    }

    /// Where output can come from, and by what number it is called.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let outputs = self.outputs.iter().enumerate();
        outputs.filter_map(|(number, output)| Some((number, output.as_ref()?.as_fd())))
    }

    /// Takes what is there from one of them.
    pub(super) fn drain(&mut self, number: usize, buffer: &mut [u8]) {
        let Some(output) = self.outputs.get_mut(number) else {
            return;
        };
        match output
            .as_ref()
            .map(|output| rustix::io::read(output, buffer))
        {
            Some(Ok(1..) | Err(Errno::AGAIN | Errno::INTR)) => {}
            // A terminal says an error when nobody has it open any more.
            _ => *output = None,
        }
    }

    /// Whether nobody can write any more.
    pub(super) fn is_over(&self) -> bool {
        self.outputs.iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_taken_until_nobody_can_write() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (input, kept) = rustix::pipe::pipe().unwrap();
        let mut orphan = Orphan::new(Some(Rc::new(kept)), [Rc::new(read)].into_iter());
        let mut buffer = [0; 4];
        rustix::io::write(&write, b"abcdef").unwrap();
        orphan.drain(0, &mut buffer);
        orphan.drain(0, &mut buffer);
        // One that there is not.
        orphan.drain(1, &mut buffer);
        assert!(!orphan.is_over());
        assert_eq!(orphan.outputs().count(), 1);
        drop(write);
        orphan.drain(0, &mut buffer);
        assert!(orphan.is_over());
        rustix::fs::fcntl_setfl(&input, rustix::fs::OFlags::NONBLOCK).unwrap();
        assert_eq!(rustix::io::read(&input, &mut buffer), Err(Errno::AGAIN));
    }
}
