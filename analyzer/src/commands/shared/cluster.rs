//! How the cluster is reached that the command line names.

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    cli::ClusterArgs,
    publish::{cluster::ClusterError, rollback::quoted},
};

impl ClusterArgs {
    /// kubectl for that cluster, as the shell reads it.
    pub(crate) fn kubectl(&self) -> String {
        let mut command = "kubectl".to_owned();
        if let Some(path) = &self.kubeconfig {
            command += &format!(" --kubeconfig={}", quoted(&path.to_string_lossy()));
        }
        if let Some(context) = &self.context {
            command += &format!(" --context={}", quoted(context));
        }
        command
    }

    /// How that cluster is reached.
    ///
    /// # Errors
    /// There is none, or no such context.
    pub(crate) async fn config(&self) -> Result<Config, ClusterError> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = match &self.kubeconfig {
            None if options.context.is_none() => Config::infer().await.map_err(|error| error.to_string()),
            None => Config::from_kubeconfig(&options).await.map_err(|error| error.to_string()),
            Some(path) => match Kubeconfig::read_from(path) {
                Ok(read) => Config::from_custom_kubeconfig(read, &options).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            },
        };
        config.map_err(ClusterError::NoConfig)
    }

    /// A client of it.
    ///
    /// # Errors
    /// As [`Self::config`], or the configuration can't be used.
    pub(crate) async fn connect(&self) -> Result<Client, ClusterError> {
        Client::try_from(self.config().await?).map_err(ClusterError::Client)
    }
}
