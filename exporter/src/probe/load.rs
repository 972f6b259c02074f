//! Brings the programs into the kernel one by one: what can't be had costs its own part alone. Nothing goes by the
//! kernel's version; what it lacks is found by trying.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread::{self, JoinHandle},
};

use aya::{
    Btf, Ebpf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSockAddr, FExit, Iter, Program, ProgramError, SockOps,
        sock_ops::SockOpsLink, tp_btf::BtfTracePointLink,
    },
};

use super::{
    Degraded, ProbeError, Refusal,
    btf::Types,
    hooks::{
        ADDRESSED, ADOPT, ADOPT_CONNECTIONS, ADOPT_RECEIVERS, CGROUPS, CLOSE, FIND_NODE, Hook, LIST_AT_ONCE,
        LIST_PROGRAMS, OPEN, PROGRAMS, RECEIVED, SENT, Spec, TCP, spec,
    },
    host::{CAP_SYS_ADMIN, has_capability},
    neighbour::Names,
    netns, walk,
};

/// Programs on their way into the kernel.
pub(super) struct Loading<'a> {
    pub(super) programs: &'a mut Ebpf,
    pub(super) btf: &'a Btf,
    pub(super) types: &'a Types<'a>,
    /// The cgroup to watch.
    pub(super) directory: &'a File,
    /// Of programs that are in the way.
    pub(super) names: Names,
    /// What was brought in so far.
    pub(super) loaded: Loaded,
}

/// Programs that are in the kernel, and those that are not.
#[derive(Default)]
pub(super) struct Loaded {
    /// Names of those that watch or can be run.
    pub(super) names: Vec<&'static str>,
    pub(super) degraded: Vec<Degraded>,
    /// What attaches [`CLOSE`]: it detaches when it is dropped.
    pub(super) close: Option<BtfTracePointLink>,
    /// Finds the last of what was open before, while the rest records.
    pub(super) adopting: Option<JoinHandle<()>>,
    pub(super) list_open: Option<Lister>,
    /// Whether it is watched what connected UDP sockets send, and what they receive.
    pub(super) sees: [bool; 2],
}

/// A program that lists what is open.
pub(super) struct Lister {
    pub(super) program: OwnedFd,
    /// Whether it is run over the map of connections, and not once for all of them.
    pub(super) is_over_map: bool,
}

impl Loading<'_> {
    /// Finds the node's own network namespace and this process; before anything watches, which would watch us too.
    pub(super) fn find_node(&mut self) {
        let walked = self.iterator(FIND_NODE).and_then(|program| run(&program));
        // It has done its work, and is not among those that record.
        if let Err(error) = walked {
            self.note(FIND_NODE, Err(error));
        }
    }

    /// Has the names of others at hand.
    pub(super) fn list_programs(&mut self) {
        match self.iterator(LIST_PROGRAMS) {
            Ok(program) => self.names = Names::new(Some(program)),
            Err(error) => self.note(LIST_PROGRAMS, Err(error)),
        }
    }

    /// Attaches what watches TCP, without which there is nothing to record.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn tcp(&mut self, path: &Path) -> Result<SockOpsLink, ProbeError> {
        let of_tcp = spec(TCP);
        let load = |loading: &mut Self| -> Result<SockOpsLink, ProgramError> {
            let program = loading.program::<SockOps>(TCP)?;
            program.load()?;
            // `Single` makes a bpf link, and links always allow others beside them.
            let directory = loading.directory;
            let program = loading.program::<SockOps>(TCP)?;
            let link = program.attach(directory, CgroupAttachMode::Single)?;
            program.take_link(link)
        };
        let attached = load(self).map_err(|error| self.refusal(of_tcp, error));
        match attached {
            Ok(link) => {
                self.loaded.names.push(TCP);
                Ok(link)
            }
            Err(source) => {
                let (program, path, source) = (TCP, path.to_path_buf(), Box::new(source));
                Err(match *source {
                    Refusal::Held(_) => ProbeError::Held { program, path, source },
                    _ => ProbeError::Refused { program, path, source },
                })
            }
        }
    }

    /// Attaches the rest, except for what finds older connections.
    pub(super) fn rest(&mut self) {
        for name in ADDRESSED {
            let attached = self.attach(spec(name));
            self.note(spec(name), attached);
        }
        self.loaded.sees = [SENT, RECEIVED].map(|(first, others)| self.either(first, others));
        let cgroups = spec(CGROUPS);
        let attached = self.attach(cgroups);
        self.note(cgroups, attached);
        let close = self.load_tracepoint(spec(CLOSE)).and_then(|()| Ok(attach_close(self.programs)?));
        let attached = close.map(|link| self.loaded.close = Some(link));
        self.note(spec(CLOSE), attached);
        let list = self.iterator(spec(OPEN)).map(|program| Lister { program, is_over_map: true });
        let list = list.or_else(|refused| {
            let list = self.iterator(LIST_AT_ONCE);
            list.map(|program| Lister { program, is_over_map: false }).map_err(|_| refused)
        });
        let loaded = list.map(|list| self.loaded.list_open = Some(list));
        self.note(spec(OPEN), loaded);
    }

    /// Takes in what is open already; everything that happens from now on is watched.
    pub(super) fn adopt(&mut self) {
        let walked = self.iterator(spec(ADOPT)).and_then(|program| run(&program));
        self.note(spec(ADOPT), walked);
        // Without it, none of the others can be entered: `doctor` says what that costs.
        if !has_capability(CAP_SYS_ADMIN) {
            return;
        }
        let namespaces = netns::all();
        let others = namespaces.clone();
        // Who sends from a UDP socket that is not known to be older would be taken for a client.
        let receivers = self.iterator(spec(ADOPT_RECEIVERS)).and_then(|program| {
            let refused = netns::in_each(namespaces, move || walk::walk(program.as_fd(), None).map(drop));
            let namespaces = refused.map_err(other)?;
            if namespaces > 0 {
                tracing::warn!(namespaces, "network namespaces can't be entered: {}", spec(ADOPT_RECEIVERS).cost());
            }
            Ok(())
        });
        self.note(spec(ADOPT_RECEIVERS), receivers);
        // The kernel looks through the connections of all namespaces for each (0.6 ms), which is not waited for.
        let connections = self.iterator(spec(ADOPT_CONNECTIONS)).and_then(|program| {
            run(&program)?;
            self.loaded.adopting = Some(thread::spawn(move || {
                let walked = netns::in_each(others, move || walk::walk(program.as_fd(), None).map(drop));
                if let Err(error) = walked {
                    let error = crate::chain(&error);
                    tracing::warn!(
                        error,
                        program = ADOPT_CONNECTIONS,
                        "not recorded: {}",
                        spec(ADOPT_CONNECTIONS).cost()
                    );
                }
            }));
            Ok(())
        });
        self.note(spec(ADOPT_CONNECTIONS), connections);
    }

    /// The number of a program in the kernel; 0 where it is not there.
    pub(super) fn number(&self, name: &str) -> u32 {
        self.programs.program(name).and_then(|program| program.info().ok()).map_or(0, |info| info.id())
    }

    /// Attaches a program, or where the kernel does not take it, two that see the same; whether all is seen. Of two, none
    /// stays alone: the hooks of calls that name an address can't know which of them is there.
    fn either(&mut self, first: &'static str, others: [&'static str; 2]) -> bool {
        let specs = others.map(spec);
        let refused = match self.attach(spec(first)) {
            Ok(()) => {
                self.loaded.names.push(first);
                return true;
            }
            Err(refused) => refused,
        };
        let attached = specs.map(|spec| self.attach(spec));
        if attached.iter().all(Result::is_ok) {
            self.loaded.names.extend(others);
            return true;
        }
        let why = |error: &Refusal| format!("{}; {first}: {}", crate::chain(error), crate::chain(&refused));
        let twin = attached.iter().find_map(|attached| attached.as_ref().err()).map(&why).unwrap_or_default();
        for (spec, attached) in specs.into_iter().zip(&attached) {
            let (reason, log) = match attached {
                Ok(()) => {
                    let _ = self.program::<FExit>(spec.name).and_then(FExit::unload);
                    (twin.clone(), None)
                }
                Err(error) => (why(error), error.verifier_log().or_else(|| refused.verifier_log()).map(str::to_owned)),
            };
            self.loaded.degraded.push(Degraded { reason, log, ..Degraded::of(spec) });
        }
        false
    }

    fn attach(&mut self, spec: Spec) -> Result<(), Refusal> {
        match spec.hook {
            Hook::Exit(function, arguments) => self.exit(spec, function, arguments),
            Hook::Tracepoint(_) => {
                self.load_tracepoint(spec)?;
                self.program::<BtfTracePoint>(spec.name)?.attach()?;
                Ok(())
            }
            Hook::SockAddr(_) => self.cgroup_hook(spec),
            // These have ways of their own.
            Hook::SockOps | Hook::Iterator(_) => Err(Refusal::NoHook(spec.name.into())),
        }
    }

    fn cgroup_hook(&mut self, spec: Spec) -> Result<(), Refusal> {
        let directory = self.directory;
        let attached = self.program::<CgroupSockAddr>(spec.name).and_then(|program| {
            program.load()?;
            program.attach(directory, CgroupAttachMode::Single).map(drop)
        });
        attached.map_err(|error| self.refusal(spec, error))
    }

    fn load_tracepoint(&mut self, spec: Spec) -> Result<(), Refusal> {
        let Hook::Tracepoint(point) = spec.hook else { return Err(Refusal::NoHook(spec.name.into())) };
        if !spec.hook.type_name().is_some_and(|name| self.types.has_typedef(&name)) {
            return Err(Refusal::NoHook(format!("tracepoint {point}")));
        }
        let btf = self.btf;
        Ok(self.program::<BtfTracePoint>(spec.name)?.load(point, btf)?)
    }

    fn exit(&mut self, spec: Spec, function: &str, arguments: usize) -> Result<(), Refusal> {
        match self.types.arguments(function) {
            Some(found) if found == arguments => {}
            Some(found) => {
                return Err(Refusal::NoHook(format!("{function} with {arguments} arguments (it has {found})")));
            }
            None => return Err(Refusal::NoHook(format!("function {function} (in its type information)"))),
        }
        let btf = self.btf;
        let program = self.program::<FExit>(spec.name)?;
        program.load(function, btf)?;
        program.attach()?;
        Ok(())
    }

    fn iterator(&mut self, spec: Spec) -> Result<OwnedFd, Refusal> {
        let Hook::Iterator(over) = spec.hook else { return Err(Refusal::NoHook(spec.name.into())) };
        let btf = self.btf;
        let program = self.program::<Iter>(spec.name)?;
        program.load(over, btf)?;
        let program = program.fd()?.as_fd().try_clone_to_owned();
        program.map_err(other)
    }

    fn program<'p, P>(&'p mut self, name: &'static str) -> Result<&'p mut P, ProgramError>
    where
        &'p mut P: TryFrom<&'p mut Program, Error = ProgramError>,
    {
        let program = self.programs.program_mut(name);
        program.ok_or(ProgramError::NotLoaded).and_then(TryInto::try_into)
    }

    /// Why the kernel did not take a program: where others have its hook for themselves, who they are.
    fn refusal(&self, spec: Spec, error: ProgramError) -> Refusal {
        let holders =
            spec.hook.attach_type().map(|number| self.names.exclusive(self.directory, number)).unwrap_or_default();
        match Refusal::from(error) {
            Refusal::Other(_) if !holders.is_empty() => Refusal::Held(holders),
            refusal => refusal,
        }
    }

    fn note(&mut self, spec: Spec, loaded: Result<(), Refusal>) {
        match loaded {
            Ok(()) => self.loaded.names.push(spec.name),
            Err(error) => {
                let (reason, log) = (crate::chain(&error), error.verifier_log().map(str::to_owned));
                self.loaded.degraded.push(Degraded { reason, log, ..Degraded::of(spec) });
            }
        }
    }
}

/// The part of the kernel's type information that programs are attached to.
pub(super) fn attached_to(types: &Types<'_>) -> Vec<u8> {
    let specs = PROGRAMS.iter().chain([&LIST_AT_ONCE, &FIND_NODE, &LIST_PROGRAMS]);
    let names: Vec<String> = specs.filter_map(|spec| spec.hook.type_name()).collect();
    types.only(names.iter().map(String::as_str))
}

/// Attaches [`CLOSE`], which is loaded.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn attach_close(programs: &mut Ebpf) -> Result<BtfTracePointLink, ProgramError> {
    let program: &mut BtfTracePoint = programs.program_mut(CLOSE).ok_or(ProgramError::NotLoaded)?.try_into()?;
    let link = program.attach()?;
    program.take_link(link)
}

fn run(program: &OwnedFd) -> Result<(), Refusal> {
    walk::walk(program.as_fd(), None).map(drop).map_err(other)
}

fn other(error: io::Error) -> Refusal {
    Refusal::Other(Box::new(error))
}
