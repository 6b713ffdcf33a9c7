// A client of celery-node's: enqueues a task at the URL that is its first argument, and prints its result as JSON.
const { createClient } = require("celery-node")

const [url, task, args] = process.argv.slice(2)
const client = createClient(url, url)
const job = client.createTask(task).applyAsync(JSON.parse(args))
job.get(20000).then((result) => {
  console.log(JSON.stringify(result))
  return client.disconnect()
})
