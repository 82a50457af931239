// Publish a text to task_queue, or sums to add, and wait for the broker's confirms.
// Needs amqplib. Usage: node send.js First message.    or: node send.js --add 221 345
const amqp = require("amqplib");
const { randomUUID } = require("crypto");

async function main(words) {
  const isSum = words[0] === "--add";
  const queue = isSum ? "add" : "task_queue";
  const body = isSum
    ? JSON.stringify({ Number1: Number(words[1]), Number2: Number(words[2]) })
    : words.join(" ") || "Hello World!";
  const count = Number(process.env.COUNT || 1);

  const connection = await amqp.connect(process.env.AMQP_URL || "amqp://guest:guest@localhost:5672");
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue(queue, { durable: true });
  for (let number = 0; number < count; number++) {
    channel.sendToQueue(queue, Buffer.from(body), {
      messageId: randomUUID(), // a second delivery is recognised by it
      contentType: isSum ? "application/json" : "text/plain",
      persistent: true,
      mandatory: true,
    });
  }
  await channel.waitForConfirms(); // throws when the broker refuses one
  await connection.close();
  console.log(`sent ${body}`);
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`not sent: ${error.message}`);
  process.exit(1);
});
