//! Programs that come and go in the guest, as seen in the frames that pass by.
//!
//! What is to be run is the client's word; what becomes of it is the guest's.

use std::collections::HashMap;

use msb_guest_agent::message::{self, Request, StreamEvent};
use msb_guest_agent::wire::{Frame, Kind, StreamId};

use crate::event::LifeEvent;

/// The most of a program's name that is told, in bytes.
const MAX_NAME: usize = 256;

/// Programs by the agent's numbers of their streams. There are as many as streams at the most:
/// a number is free again only after the agent has closed it.
#[derive(Debug, Default)]
pub(super) struct Execs(HashMap<StreamId, Exec>);

#[derive(Debug)]
struct Exec {
    program: String,
    pid: Option<u32>,
}

impl Execs {
    /// Looks at what a client says to the agent.
    pub(super) fn hear_client(&mut self, frame: &Frame) {
        if frame.kind != Kind::Open {
            return;
        }
        // The last part of a request that is longer than a frame says nothing.
        let program = match message::decode(&frame.payload) {
            Some(Request::Exec(exec)) => exec.argv.into_iter().next(),
            Some(_) => return,
            None => None,
        };
        let program =
            program.map(|program| String::from_utf8_lossy(program.as_bytes()).into_owned());
        let mut program = program.unwrap_or_else(|| "?".into());
        program.truncate(program.floor_char_boundary(MAX_NAME));
        let exec = Exec { program, pid: None };
        self.0.insert(frame.stream, exec);
    }

    /// Looks at what the agent says; says what that means.
    pub(super) fn hear_agent(&mut self, frame: &Frame) -> Option<LifeEvent> {
        match frame.kind {
            Kind::Event => {
                let exec = self.0.get_mut(&frame.stream)?;
                match message::decode(&frame.payload)? {
                    StreamEvent::Started { pid } if exec.pid.is_none() => {
                        exec.pid = Some(pid);
                        let program = exec.program.clone();
                        Some(LifeEvent::ExecStarted { program, pid })
                    }
                    StreamEvent::Exited(status) => {
                        let exec = self.0.remove(&frame.stream)?;
                        exec.ended(Some(status.code()), status.to_string())
                    }
                    StreamEvent::Troubled { status, troubles } => {
                        let exec = self.0.remove(&frame.stream)?;
                        let mut reason = status.to_string();
                        for trouble in &troubles {
                            reason.push_str("; ");
                            reason.push_str(&trouble.to_string());
                        }
                        exec.ended(Some(status.code()), reason)
                    }
                    _ => None,
                }
            }
            Kind::Close | Kind::Reset => {
                let exec = self.0.remove(&frame.stream)?;
                exec.ended(None, "given up and killed".into())
            }
            _ => None,
        }
    }
}

impl Exec {
    /// Says so, if it had begun.
    fn ended(self, code: Option<u8>, reason: String) -> Option<LifeEvent> {
        Some(LifeEvent::ExecEnded {
            program: self.program,
            pid: self.pid?,
            code,
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use msb_guest_agent::message::{ExecRequest, ExitStatus};

    use super::*;

    fn frame(kind: Kind, payload: Vec<u8>) -> Frame {
        Frame::new(kind, StreamId(5), payload.into()).expect("a frame")
    }

    fn open(program: &str) -> Frame {
        let argv = vec![program.into()];
        let request = Request::Exec(ExecRequest {
            argv,
            ..ExecRequest::default()
        });
        frame(Kind::Open, message::encode(&request))
    }

    fn event(event: &StreamEvent) -> Frame {
        frame(Kind::Event, message::encode(event))
    }

    #[test]
    fn programs_come_and_go() {
        let mut execs = Execs::default();
        execs.hear_client(&open("sh"));
        let started = event(&StreamEvent::Started { pid: 7 });
        let program = || "sh".to_owned();
        let begun = LifeEvent::ExecStarted {
            program: program(),
            pid: 7,
        };
        assert_eq!(execs.hear_agent(&started), Some(begun));
        // A guest that says it again is not believed again.
        assert_eq!(execs.hear_agent(&started), None);
        let exited = event(&StreamEvent::Exited(ExitStatus::Code(3)));
        let ended = |code, reason: &str| LifeEvent::ExecEnded {
            program: program(),
            pid: 7,
            code,
            reason: reason.into(),
        };
        assert_eq!(
            execs.hear_agent(&exited),
            Some(ended(Some(3), "exit code 3"))
        );
        assert_eq!(execs.hear_agent(&frame(Kind::Close, Vec::new())), None);

        execs.hear_client(&open("sh"));
        assert!(execs.hear_agent(&started).is_some());
        let given_up = frame(Kind::Reset, vec![0]);
        assert_eq!(
            execs.hear_agent(&given_up),
            Some(ended(None, "given up and killed"))
        );
        assert!(execs.0.is_empty());
    }

    #[test]
    fn nonsense_is_none() {
        let mut execs = Execs::default();
        assert_eq!(
            execs.hear_agent(&event(&StreamEvent::Started { pid: 7 })),
            None
        );
        let file = frame(Kind::Open, message::encode(&Request::Dial { port: 1 }));
        execs.hear_client(&file);
        assert!(execs.0.is_empty());
        execs.hear_client(&open(&"ä".repeat(1000)));
        assert_eq!(execs.hear_agent(&frame(Kind::Event, vec![255])), None);
        assert_eq!(execs.hear_agent(&frame(Kind::Close, Vec::new())), None);
        assert!(execs.0.is_empty());
    }
}
