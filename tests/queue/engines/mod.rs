//! One contract for all engines: the same stories over memory, a directory, and the servers that are installed here.
//!
//! Method      each engine is one test with one server, and all stories run over it at the same time, each on queues of its
//!             own. What an engine cannot do it must refuse. Behind the stories the server is killed and started again.
//! Skipped     where a server is not installed, with a word on the output; and RabbitMQ, which takes its time to start twice,
//!             unless `QUORATE_RABBITMQ` is set.

mod servers;
mod stories;

use std::time::Duration;

use quorate::queue::engine::{EngineError, EngineQueues};

use self::servers::Server;
use self::stories::Return;
use super::Outcome;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn q08_queues_in_memory_keep_the_contract_of_engines() -> Outcome {
    let queues = EngineQueues::open("memory:").await?;
    stories::all(&queues, Return::AtOnce).await;
    queues.close().await?;
    assert!(matches!(queues.queue("late").await, Err(EngineError::Declare(_))), "closed");
    Ok(())
}

#[tokio::test]
async fn q08_queues_in_a_directory_keep_the_contract_of_engines() -> Outcome {
    let directory = tempfile::tempdir()?;
    let url = format!("journal://{}?node=7", directory.path().display());
    let queues = EngineQueues::open(&url).await?;
    stories::all(&queues, Return::AtOnce).await;
    stories::before_the_crash(&queues).await;
    queues.close().await?;
    let queues = EngineQueues::open(&url).await?;
    stories::after_the_crash(&queues).await;
    queues.close().await?;
    Ok(())
}

#[tokio::test]
async fn q08_nats_keeps_the_contract_of_engines() -> Outcome {
    with_server(Server::nats(), Return::AtOnce).await
}

#[tokio::test]
async fn q08_postgres_keeps_the_contract_of_engines() -> Outcome {
    with_server(Server::postgres(), Return::AtOnce).await
}

#[tokio::test]
async fn q08_postgres_is_talked_to_only_behind_a_certificate_that_is_known_where_that_is_required() -> Outcome
{
    let mut server = match Server::postgres() {
        Ok(server) => server,
        Err(missing) => {
            println!("skipped: {missing} is not installed");
            return Ok(());
        }
    };
    server.open().await.close().await?;
    let refused = async |url: &str| EngineQueues::open(url).await.expect_err("not secure");
    let known = server.url().to_owned();
    // The certificate is for the address.
    let error = refused(&known.replace("127.0.0.1", "localhost")).await;
    assert!(format!("{error:?}").contains("NotValidForName"), "{error:?}");
    let (unknown, file) = known.split_once("&sslrootcert=").ok_or("a root")?;
    refused(unknown).await;
    let error = refused(&known.replace("sslmode=require&", "")).await;
    assert_eq!(error.to_string(), "the engine's url has `sslrootcert` without `sslmode=require`");
    let error = refused(&known.replace(file, "/nowhere")).await;
    assert_eq!(error.to_string(), "the engine's url has an `sslrootcert` that cannot be read");
    let plain = known.split_once('?').ok_or("options")?.0;
    EngineQueues::open(plain).await?.close().await?;
    Ok(())
}

#[tokio::test]
async fn q08_rabbitmq_keeps_the_contract_of_engines() -> Outcome {
    if std::env::var_os("QUORATE_RABBITMQ").is_none() {
        println!("skipped: QUORATE_RABBITMQ is not set");
        return Ok(());
    }
    with_server(Server::rabbitmq(), Return::Later).await
}

async fn with_server(server: Result<Server, &'static str>, returns: Return) -> Outcome {
    let mut server = match server {
        Ok(server) => server,
        Err(missing) => {
            println!("skipped: {missing} is not installed");
            return Ok(());
        }
    };
    let queues = server.open().await;
    // Long before the crash: a queue that RabbitMQ has just made may not survive that.
    queues.queue("crash").await?;
    stories::all(&queues, returns).await;
    stories::before_the_crash(&queues).await;
    server.kill();
    server.start();
    server.open().await.close().await?;
    // The handle that had the connection finds the way back.
    tokio::time::timeout(4 * PATIENCE, stories::after_the_crash(&queues)).await?;
    let queue = queues.queue("closed").await?;
    queues.close().await?;
    queue.put("too late").await.expect_err("closed");
    queue.poll().await.expect_err("closed");
    queues.queue("late").await.expect_err("closed");
    Ok(())
}

#[tokio::test]
async fn q08_an_engine_that_is_not_there_is_told_with_the_reason() {
    let refused = async |url: &str| EngineQueues::open(url).await.expect_err("no engine").to_string();
    assert_eq!(refused("orders").await, "the engine's url has no scheme");
    assert_eq!(refused("kafka://localhost").await, "the engine's url has a scheme that no engine has");
    assert_eq!(refused("memory://x").await, "the engine's url of memory is `memory:` alone");
    assert_eq!(
        refused("journal://x").await,
        "the engine's url of a journal has an absolute path: `journal:///directory`"
    );
    assert_eq!(refused("journal:///tmp/x?node=me").await, "the engine's url has no number behind `node=`");
    assert_eq!(refused("amqp:guest:secret@localhost").await, "the engine's url is none of amqp");
    assert_eq!(refused("postgres://a@b:secret").await, "the engine's url is none of postgres");
    // Nobody listens there: it is the port of a service that nobody has.
    for url in
        ["nats://127.0.0.1:1", "amqp://guest:secret@127.0.0.1:1", "postgres://shop:secret@127.0.0.1:1/shop"]
    {
        let error = EngineQueues::open(url).await.expect_err("no engine");
        assert!(matches!(error, EngineError::Unreachable(_)), "{url}: {error:?}");
        assert!(error.is_retryable());
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}
