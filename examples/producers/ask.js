// Ask for a sum, and wait for the reply over the broker's direct reply-to, which needs no queue.
// Needs amqplib. Usage: node ask.js 221 345
const amqp = require("amqplib");
const { randomUUID } = require("crypto");

async function main([first, second]) {
  if (second === undefined) throw new Error("Usage: node ask.js 221 345");
  const connection = await amqp.connect(process.env.AMQP_URL || "amqp://guest:guest@localhost:5672");
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue("add", { durable: true });
  const question = randomUUID();
  const reply = new Promise((resolve) => {
    const take = (message) => message.properties.correlationId === question && resolve(message.content);
    channel.consume("amq.rabbitmq.reply-to", take, { noAck: true }); // before the question, on its channel
  });
  const body = JSON.stringify({ Number1: Number(first), Number2: Number(second) });
  channel.sendToQueue("add", Buffer.from(body), {
    messageId: question,
    correlationId: question,
    replyTo: "amq.rabbitmq.reply-to",
    persistent: true,
  });
  await channel.waitForConfirms();
  const end = JSON.parse(await reply);
  await connection.close();
  if (end.status !== "SUCCESS") throw new Error(end.error);
  console.log(end.result);
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
